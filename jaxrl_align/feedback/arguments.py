"""Which of two arguments convinces more: the real judgements of UKPConvArg1."""

import csv
import io
from pathlib import Path

from jaxrl_align.data.files import DataFile, decode_text, find_file, parse_table
from jaxrl_align.feedback.rows import Comparison

_COMMIT = "ce2094c128d046511095346c4437895e625d1d3e"
_FOLDER = "UKPConvArg1Strict-CSV"
_SHA256 = {
    "ban-plastic-water-bottles_no-bad-for-the-economy": (
        "d1efc6d3f08a0167d6b71cf8f50ccb9d89da8e353162a712629dbaddee9fc883"
    ),
    "ban-plastic-water-bottles_yes-emergencies-only": (
        "f1b594fcd3feb274a819b9bdd59673034f555d89acbabe7c0b40adcfc8df13de"
    ),
    "christianity-or-atheism-_atheism": ("c9784346115d1275cab5fb6288a635e5a67b32110d73b2677629263e38a2f16e"),
    "christianity-or-atheism-_christianity": (
        "e90ce4eabeb3c6a34ad772e34ba7f5255364fa27cd87eaf2406824af401e1dcb"
    ),
    "evolution-vs-creation_creation": ("722c40b9b2e6725036fcaca243fe7421deedf253f939a66a2c332e8a8395406b"),
    "evolution-vs-creation_evolution": ("0b8218b8b9bb8c3d7660a8b6008ddefc081c1d301de329dc7af796ab55f3a563"),
    "firefox-vs-internet-explorer_it-has-a-cute-logo-oh-and-extensions-err-add-ons": (
        "9a33cbec5bcb9f3651bc3747117ed1faa9b7c3cf93a86a3ba3bab9d3435898b1"
    ),
    "firefox-vs-internet-explorer_there-s-more-browsers-than-the-ie-firefox-is-an-animal": (
        "101719aae383d31cc05195524a8a79efacca767268bf91c1f7ad2be5aca8cacd"
    ),
    "gay-marriage-right-or-wrong_allowing-gay-marriage-is-right": (
        "c504170720075bb247bf857b4a74e2a0006e227874d41a365d4cf742143af02c"
    ),
    "gay-marriage-right-or-wrong_allowing-gay-marriage-is-wrong": (
        "2759c1ad9c0748a1fa8cbbf6166e104b9a731d46c007eec9221746ec78a27fd2"
    ),
    "human-growth-and-development-should-parents-use-spanking-as-an-option-to-discipline-_no": (
        "7a3ac8558be74f3f4f085293d545800f866f66b0b8cfdf8702c1d32b70dfe7a8"
    ),
    "human-growth-and-development-should-parents-use-spanking-as-an-option-to-discipline-_yes": (
        "103403421f41b18f102954f9a8968aa18a6edf759379cccec19e2dcd10af8d71"
    ),
    "if-your-spouse-committed-murder-and-he-or-she-confided-in-you-would-you-turn-them-in-_no": (
        "924bbb29b79990b196ac2f17c25a8a5ada2c1eb44369052ad006731f272459ea"
    ),
    "if-your-spouse-committed-murder-and-he-or-she-confided-in-you-would-you-turn-them-in-_yes": (
        "c8c5ed3510f842aa60d4935f3137293637b2a8c775788ccbe00ac925d625d45d"
    ),
    "india-has-the-potential-to-lead-the-world-_no-against": (
        "fc5d6699740e343606133afd9cb8eb5e44accaf9ddca5502c41809d40592d4d5"
    ),
    "india-has-the-potential-to-lead-the-world-_yes-for": (
        "5183a1587bb9c688f13da61efe8247e1c0833d459ed59cc79c0e9ceac9bbc4b3"
    ),
    "is-it-better-to-have-a-lousy-father-or-to-be-fatherless-_fatherless": (
        "90ea69a4800eebc6aec6935dccc72d592bae2ea3acf0b8a199cb43552be2948d"
    ),
    "is-it-better-to-have-a-lousy-father-or-to-be-fatherless-_lousy-father": (
        "129e2e19214db77b98a04feb66a4e85c3d78cc494b0dfb1b3d099c3e37ef0b6a"
    ),
    "is-porn-wrong-_no-is-is-not": ("b6b30bede4567c84dbc2ec8db0c6acb74f818d2685534e8d09d35f48c3f230fe"),
    "is-porn-wrong-_yes-porn-is-wrong": ("1a827506b88b7f5d7ce1a781cb935d4fe3f019b79b83bd2a778526e10c9ff6f1"),
    "is-the-school-uniform-a-good-or-bad-idea-_bad": (
        "7ebb532dcaedd836a7a96a65a7cc45bb10e92d49fd7d94a265795ecf68e1927a"
    ),
    "is-the-school-uniform-a-good-or-bad-idea-_good": (
        "db2948b209b9d59e8aa256aa020dcc7bd53581ede762f403e2550d7eb60dad1e"
    ),
    "personal-pursuit-or-advancing-the-common-good-_advancing-the-commond-good": (
        "4e0dcc10f2e9c360f0786aeb1545440943794c65c290d4f4d144c7ab22420748"
    ),
    "personal-pursuit-or-advancing-the-common-good-_personal-pursuit": (
        "3ddb7f9b04425a02eaff86394b02ef3a516317457283bc4ba84cf38bb6048e0a"
    ),
    "pro-choice-vs-pro-life_pro-choice": ("7f98ca0c5eec48782c1ce6d43aefad41428c82cb3bb0ed2b8cda48c7a035352f"),
    "pro-choice-vs-pro-life_pro-life": ("648586dff1eb6e4c22d7eb528cca79219daecc9b99906c8bae59f810bf532585"),
    "should-physical-education-be-mandatory-in-schools-_no-": (
        "9fa60eee8b161ff400b0b88b01c3e6a1b44bedc4795eea4a75c7089b784e7c16"
    ),
    "should-physical-education-be-mandatory-in-schools-_yes-": (
        "133e27fb57352eeb1bc71638051536546cabc84b90bff4f7e6d7313da944176c"
    ),
    "tv-is-better-than-books_books": ("2d8b8247570aab28837febfdfdd7324f4e1fac2efe58a77d7fc355c89509642f"),
    "tv-is-better-than-books_tv": "76677ba0814e95380b1f5b9a459670fd3e71ad1f5cb02ecc7ac094e3f5dfb58e",
    "william-farquhar-ought-to-be-honoured-as-the-rightful-founder-of-singapore_no-it-is-raffles-": (
        "112defbb0e49db425a7ed3e28de9a5b133c17f739fa9d0b8d08c9ee00facf785"
    ),
    "william-farquhar-ought-to-be-honoured-as-the-rightful-founder-of-singapore_yes-of-course-": (
        "67addb83292e7e2d638edac70d2cc670e0b3d7ec19f57b101c8fd9ff975bab4e"
    ),
}
"""Side of a debate, `debate_side`, -> checksum of its file; 16 debates with two sides each."""

UKPCONVARG1 = {
    name: DataFile(
        f"preference/ukpconvarg1/{_FOLDER}/{name}.csv",
        f"https://raw.githubusercontent.com/UKPLab/acl2016-convincing-arguments/{_COMMIT}/data/{_FOLDER}/"
        f"{name}.csv",
        sha256,
    )
    for name, sha256 in _SHA256.items()
}


def load_convincing_arguments() -> dict[str, list[Comparison]]:
    """Return 11,650 pairs of arguments for the same side, of which crowd workers found one more convincing.

    Pairs that they called equal are left out, and so are those that contradict others. Text that is longer is
    the more convincing one in 75.9%, and a single worker agrees with these labels in 85.0%: hold whole
    debates out, and print the length beside every figure.

    Returns:
      Debate -> its pairs, of both sides; the prompt names debate and side.

    Raises:
      FileNotFoundError, ImportError: a file is nowhere and cannot be fetched; see `data.files.find_file`.
      ValueError: for a file of another form.

    Source: Habernal & Gurevych 2016, ACL (CC BY 4.0).
    """
    debates: dict[str, list[Comparison]] = {}
    for name, file in UKPCONVARG1.items():
        debate, side = name.rsplit("_", 1)
        prompt = f"Debate: {_spell(debate)}\nSide: {_spell(side)}\nArgument:"
        debates.setdefault(_spell(debate), []).extend(read_arguments(find_file(file), prompt))
    return debates


def read_arguments(path: str | Path, prompt: str) -> list[Comparison]:
    """Read a file of tab-separated rows: name, "a1" or "a2" (the more convincing one), and both arguments.

    Raises:
      ValueError: with file and line, for a row of another form; for a file without rows.
    """
    rows = []
    text = io.StringIO(decode_text(Path(path).read_bytes(), str(path)), newline="")
    for number, fields in parse_table(text, str(path), delimiter="\t", quoting=csv.QUOTE_NONE):
        if number == 1 and fields[0].startswith("#"):
            continue
        source = f"{path}:{number}"
        if len(fields) != 4 or fields[1] not in ("a1", "a2") or not (fields[2].strip() and fields[3].strip()):
            raise ValueError(
                f"{source}: a row must be name, a1 or a2, and two arguments, tabs between; got "
                f"{str(fields)[:60]}"
            )
        better = 2 if fields[1] == "a1" else 3
        chosen, rejected = (" " + fields[i] for i in (better, 5 - better))
        rows.append(Comparison(prompt, chosen, rejected, source=source))
    if not rows:
        raise ValueError(f"{path} must hold pairs of arguments; it is empty")
    return rows


def _spell(name: str) -> str:
    return " ".join(name.replace("-", " ").split())
