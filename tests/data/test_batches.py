import itertools
import math

import numpy as np
import pytest

from jaxrl_align.cli.datasets import shuffled_batches
from jaxrl_align.data.batches import HostBatches, row_places, shuffled_rows
from jaxrl_align.data.tokens.streams import stream_rows
from jaxrl_align.pretrain.lm import stream_windows

TEXT = np.random.default_rng(0).integers(0, 1000, 5000).astype(np.uint16)


def test_a_call_hands_on_what_it_is_asked_for():
    batches = HostBatches(6, lambda *asked: asked)
    assert batches(3, 2) == batches(3, 2, slice(None)) == (3, 2, slice(0, 6))
    assert batches(3, 2, rows=slice(4)) == (3, 2, slice(0, 4))
    assert batches(3, 2, rows=slice(5, None)) == (3, 2, slice(5, 6))


def test_places_count_every_row_of_every_batch():
    places = row_places(2, 3, 5, slice(0, 5))
    assert places.tolist() == [[*range(10, 15)], [*range(15, 20)], [*range(20, 25)]]
    np.testing.assert_array_equal(row_places(2, 3, 5, slice(1, 4)), places[:, 1:4])


@pytest.mark.parametrize(
    "batches",
    [
        stream_rows(TEXT, batch_size=24, length=7, seed=3),
        HostBatches(24, lambda *asked: stream_windows(TEXT, batch_size=24, length=7, seed=3)(*asked).tokens),
        shuffled_batches(TEXT[:101], batch_size=24, seed=3),
    ],
    ids=["rows", "windows", "shuffled"],
)
@pytest.mark.parametrize("hosts", [1, 2, 3, 4, 8])
def test_hosts_read_the_whole_batch_between_them(batches, hosts):
    whole, part = batches(4, 5), 24 // hosts
    parts = [batches(4, 5, rows=slice(i, i + part)) for i in range(0, 24, part)]
    np.testing.assert_array_equal(np.concatenate(parts, axis=1), whole)
    assert {x.dtype for x in parts} == {whole.dtype} and whole.shape[:2] == (5, 24)
    np.testing.assert_array_equal(batches(6, 1, rows=slice(5, 7)), whole[2:3, 5:7])


class Watched(np.ndarray):
    """Tokens that count how many of them are read."""

    def __getitem__(self, index):
        self.read = getattr(self, "read", 0) + np.size(index)
        return np.asarray(self)[index]


def test_the_windows_of_others_are_not_read():
    text = TEXT.view(Watched)
    stream_rows(text, batch_size=100, length=7, seed=3)(0, 2, rows=slice(10, 13))
    assert text.read == 2 * 3 * 8


def test_the_recorded_draws_of_a_stream():
    """Figures were measured with these windows."""
    rows = stream_rows(np.arange(1000), batch_size=4, length=2, seed=7)(5, 2)
    assert rows[..., 0].tolist() == [[557, 18, 992, 665], [914, 484, 779, 592]]


def test_every_epoch_reads_every_row_once_in_an_order_of_its_own():
    for num_rows in (1, 2, 3, 5, 16, 97, 1000):
        epochs = shuffled_rows(np.arange(6 * num_rows), num_rows=num_rows, seed=0).reshape(6, num_rows)
        assert epochs.dtype == np.int64
        np.testing.assert_array_equal(np.sort(epochs, axis=1), np.tile(np.arange(num_rows), (6, 1)))
        assert num_rows < 16 or len({epoch.tobytes() for epoch in epochs}) == 6


def test_seeds_differ_and_any_places_may_be_asked_for():
    places = np.arange(500).reshape(20, 25)
    rows = shuffled_rows(places, num_rows=97, seed=1)
    assert rows.shape == places.shape
    order = np.random.default_rng(0).permutation(500)
    np.testing.assert_array_equal(
        shuffled_rows(places.ravel()[order], num_rows=97, seed=1), rows.ravel()[order]
    )
    np.testing.assert_array_equal(shuffled_rows([[123]], num_rows=97, seed=1), [[rows.ravel()[123]]])
    assert (shuffled_rows(places, num_rows=97, seed=2) != rows).mean() > 0.9
    assert (rows.ravel()[:97] != rows.ravel()[97:194]).mean() > 0.9
    assert shuffled_rows([], num_rows=97, seed=1).shape == (0,)


def test_the_recorded_order_of_rows():
    """A run is continued by a later version of the package, or of NumPy, in the same order."""
    assert shuffled_rows(np.arange(14), num_rows=7, seed=3).tolist() == [
        2,
        0,
        1,
        4,
        5,
        6,
        3,
        3,
        1,
        6,
        4,
        2,
        0,
        5,
    ]
    big = shuffled_rows(np.arange(3) + 10**15, num_rows=10**12, seed=2**40)
    assert big.tolist() == [147129646874, 758633922321, 75128023075]


def spread(counts):
    """Return the chi-squared of counts that should be equal, in standard deviations from its mean."""
    expected = counts.sum() / counts.size
    freedom = counts.size - 1
    return (((counts - expected) ** 2 / expected).sum() - freedom) / math.sqrt(2 * freedom)


@pytest.mark.parametrize("num_rows", [2, 3, 4, 5])
def test_all_orders_of_few_rows_are_equally_common(num_rows):
    epochs = 200 * math.factorial(num_rows)
    orders = shuffled_rows(np.arange(epochs * num_rows), num_rows=num_rows, seed=0).reshape(-1, num_rows)
    found = dict.fromkeys(itertools.permutations(range(num_rows)), 0)
    for order in map(tuple, orders.tolist()):
        found[order] += 1
    assert abs(spread(np.array(list(found.values())))) < 3


@pytest.mark.parametrize("num_rows", [7, 9, 50])
def test_rows_and_pairs_of_rows_come_anywhere_alike(num_rows):
    epochs = 4000
    orders = shuffled_rows(np.arange(epochs * num_rows), num_rows=num_rows, seed=0).reshape(-1, num_rows)
    places = np.stack([np.bincount(column, minlength=num_rows) for column in orders.T])
    assert abs(spread(places)) < 4
    for other in (1, num_rows - 1):
        pairs = np.bincount(orders[:, 0] * num_rows + orders[:, other], minlength=num_rows**2)
        different = pairs.reshape(num_rows, num_rows)[~np.eye(num_rows, dtype=bool)]
        assert different.sum() == epochs and abs(spread(different)) < 4


def test_neighbours_among_many_rows_are_unrelated():
    rows = shuffled_rows(np.arange(100_000), num_rows=10**9, seed=0)
    assert abs(np.corrcoef(rows[:-1], rows[1:])[0, 1]) < 0.015
    assert abs(spread(np.histogram(rows, 1000, (0, 10**9))[0])) < 4
    assert abs(spread(np.histogram(np.diff(rows) % 10**9, 1000, (0, 10**9))[0])) < 4
    assert abs(spread(np.bincount(rows % 31623, minlength=31623))) < 4
