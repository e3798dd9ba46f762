"""The world of exact tasks of `instruction_tuning.py`, by hand."""

import jax
import jax.numpy as jnp
import numpy as np

from tests.experiments.loading import load

world = load("instruction_tuning_world")
shares = load("instruction_tuning_shares")


def test_the_world_picks_and_writes_by_hand():
    items = jnp.array([7, 15, 2, 9, 4])
    picked = [int(world.pick(jnp.array(rule), items)) for rule in range(len(world.RULES))]
    assert picked == [7, 15, 2, 9, 4, 15, 2, 7]
    m, o, c, stop, pad = world.MARK, world.OPEN, world.CLOSE, world.STOP, world.PAD
    expected = [
        *([15, stop, pad, pad], [15, 15, stop, pad], [15, 15, 15, stop], [m, 15, stop, pad]),
        *([15, m, stop, pad], [o, 15, c, stop], [0, stop, pad, pad], [7, stop, pad, pad]),
    ]
    forms = jnp.arange(len(world.FORMS))
    assert jax.vmap(world.write_answer, (0, None))(forms, jnp.array(15)).tolist() == expected


def test_a_row_of_the_world_asks_and_its_answer_alone_is_learnt():
    asked = world.draw_lists(jax.random.key(0), jnp.array([8 * 4 + 2, 8 * 5 + 6]))
    assert asked.rule.tolist() == [4, 5] and asked.form.tolist() == [2, 6]
    assert all(len(set(row)) == world.ITEMS for row in asked.items.tolist())
    rows = world.as_rows(asked)
    words = [[world.WORD + 4, world.WORD + 8 + 2], [world.WORD + 5, world.WORD + 8 + 6]]
    items = asked.items.tolist()
    last, largest = items[0][-1], max(items[1])
    assert rows.tokens.tolist() == [
        [*words[0], *items[0], world.ASK, last, last, last, world.STOP],
        [*words[1], *items[1], world.ASK, (largest + 1) % 16, world.STOP, world.PAD, world.PAD],
    ]
    assert rows.predict.tolist() == [[0.0] * 8 + [1.0] * 4, [0.0] * 8 + [1.0, 1.0, 0.0, 0.0]]
    assert rows.real.tolist() == [[1.0] * 12, [1.0] * 10 + [0.0] * 2]


def test_the_worlds_answers_are_judged_by_their_form_and_their_symbol():
    asked = world.Asked(jnp.zeros(4, int), jnp.full(4, 3), jnp.tile(jnp.array([7, 15, 2, 9, 4]), (4, 1)))
    said = [[world.MARK, 7, world.STOP, world.PAD], [world.MARK, 9, world.STOP, world.PAD]]
    said += [[world.MARK, 8, world.STOP, world.PAD], [7, world.STOP, world.PAD, world.PAD]]
    found = world.judge_answers(asked, jnp.array(said))
    assert found["right"].tolist() == [1, 0, 0, 0] and found["format"].tolist() == [1, 1, 0, 0]


def test_every_word_is_learnt_and_asked():
    learnt, unseen = world.split_tasks(0)
    assert sorted([*learnt, *unseen]) == list(range(64)) and learnt.tolist() != sorted(learnt)
    for part, times in ((learnt, 6), (unseen, 2)):
        for words in np.divmod(part, 8):
            assert np.bincount(words).tolist() == [times] * 8
    assert world.split_tasks(0)[0].tolist() == learnt.tolist() != world.split_tasks(1)[0].tolist()
    assert world.split_tasks(1)[1].tolist() != unseen.tolist()
    assert world.words_known(learnt, unseen).all() and not world.words_known(learnt[:1], unseen).any()
    known = world.words_known(np.array([8 * 1 + 2, 8 * 3 + 4]), np.array([8 * 1 + 4, 8 * 1 + 5, 8 * 2 + 4]))
    assert known.tolist() == [True, False, False]


def test_shares_of_the_world_by_hand():
    row = {
        "known": [[1, 0], [0, 0]],
        "unseen": {"format": [[1.0, 0.5], [0.0, 0.0]], "right": [[0.5, 0], [0, 0]]},
    }
    found = shares.unseen_shares(row)
    np.testing.assert_allclose(found["known"], [0.5, 0.0])
    np.testing.assert_allclose(found["format"], [0.75, 0.0])
    np.testing.assert_allclose(found["given"], [1 / 3, np.nan])
    np.testing.assert_allclose(found["known format"], [1.0, np.nan])
    np.testing.assert_allclose(found["known right"], [0.5, np.nan])
    np.testing.assert_allclose(found["known given"], [0.5, np.nan])
    other = shares.unseen_shares(row, [[0, 1], [1, 1]])
    np.testing.assert_allclose(other["known format"], [0.5, 0.0])
