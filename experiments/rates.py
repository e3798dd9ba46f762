"""Tables of the learning rates that were tried."""

from collections.abc import Mapping


def rates_table(
    tried: Mapping[str, Mapping[float, float]], taken: Mapping[str, float]
) -> dict[str, dict[str, float | str]]:
    """Return a table with a column for each rate and one for the rate that was taken.

    Args:
      tried: by row, what each of its rates came to.
      taken: by row, the rate.
    """
    every = sorted({rate for row in tried.values() for rate in row})
    return {
        name: {f"{rate:g}": float(row[rate]) if rate in row else "" for rate in every}
        | {"taken": f"{taken[name]:g}"}
        for name, row in tried.items()
    }


if __name__ == "__main__":
    from jaxrl_align.runtime import cli

    cli.point_to("critic_init")
