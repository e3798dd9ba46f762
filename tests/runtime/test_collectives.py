"""Exchanges read from the text of a compiled program: how often, how large, among how many."""

from jaxrl_align.runtime.devices.collectives import count_lines, list_collectives

PROGRAM = """HloModule jit_step

%add (x: f32[], y: f32[]) -> f32[] {
  ROOT %sum = f32[] add(%x, %y)
}

%inner (p: f32[8]) -> f32[8] {
  ROOT %shift = f32[8]{0} collective-permute(%p), source_target_pairs={{0,1}}, metadata={op_name="inner"}
}

%body (p: f32[8]) -> f32[8] {
  %open = (bf16[2,4]{1,0}, bf16[8,4]{1,0}) all-gather-start(%p), replica_groups=[2,4]<=[8], dimensions={0}
  %close = bf16[8,4]{1,0} all-gather-done(%open)
  ROOT %turn = f32[8]{0} while(%p), condition=%less, body=%inner
}

%less (p: f32[8]) -> pred[] {
  ROOT %yes = pred[] constant(true)
}

ENTRY %main (a: f32[8]) -> f32[8] {
  %loop = f32[8]{0} while(%a), condition=%less, body=%body, backend_config={"known_trip_count":{"n":"3"}}
  %all = f32[8]{0} all-reduce(%loop), replica_groups={{0,1},{2,3}}, to_apply=%add, metadata={op_name="mean"}
  ROOT %part = ((f32[8], s8[16]), (f32[2], s8[4])) reduce-scatter-start(%all), replica_groups=mesh['a'=2,'b'=4,'c'=2] {'a','c'}
}
"""  # noqa: E501


def test_exchanges_of_a_program():
    rows = {row.kind: row[1:4] + row[5:] for row in list_collectives(PROGRAM, turns=5)}
    assert rows == {
        "all-gather": ("bf16[8,4]", 3, 64, 4),
        "collective-permute": ("f32[8]", 15, 32, 0),
        "all-reduce": ("f32[8]", 1, 32, 2),
        "reduce-scatter": ("f32[2], s8[4]", 1, 12, 4),
    }
    assert [row.operation for row in list_collectives(PROGRAM)] == ["", "inner", "mean", ""]


def test_a_loop_of_unknown_length_counts_as_often_as_it_is_said_to_turn():
    shift = lambda **turns: next(n for line, n in count_lines(PROGRAM, **turns) if "%shift" in line)
    assert shift() == 3 and shift(turns=5) == 15
