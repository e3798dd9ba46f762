from jaxrl_align.data.probes import CLOZE_PROBES, GAP, Cloze


def test_a_gap_is_filled():
    probe = Cloze("x", "A ___ b.", ("one", "two"))
    assert probe.filled() == ["A one b.", "A two b."] and probe.prompt() == "A"


def test_the_seven_probes():
    assert len(CLOZE_PROBES) == len({probe.skill for probe in CLOZE_PROBES}) == 7
    for probe in CLOZE_PROBES:
        assert probe.text.count(GAP) == 1 and probe.candidates[0]
        assert len(set(probe.filled())) == len(probe.candidates) == 5
        assert probe.prompt() and GAP not in "".join(probe.filled())


def test_the_expected_words():
    assert [probe.candidates[0] for probe in CLOZE_PROBES] == [
        *("Palo Alto", "the", "her", "whales", "bad", "kitchen", "34")
    ]
    assert sum([13, 21]) == int(CLOZE_PROBES[-1].candidates[0])
