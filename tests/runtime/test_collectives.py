"""Exchanges read from the text of a compiled program: how often, how large, among how many."""

from jaxrl_align.runtime.devices.collectives import count_lines, list_collectives

PROGRAM = """HloModule jit_step

%add (x: f32[], y: f32[]) -> f32[] {
  ROOT %sum = f32[] add(%x, %y)
}

%inner (p: f32[8]) -> f32[8] {
  ROOT %shift = f32[8]{0} collective-permute(%p), source_target_pairs={{0,1}}, metadata={op_name="inner"}
}

%sums (p: f32[8]) -> f32[8] {
  ROOT %both = (f32[8], f32[4]) all-reduce-start(%p, %q), replica_groups={{0,1,2}}, to_apply=%add
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
  %moved = (f32[6]{0}, f32[6]{0}, u32[], u32[]) collective-permute-start(%a), metadata={op_name="moved"}
  %some = f32[8]{0} call(%a), to_apply=%sums
  %all = f32[8]{0} all-reduce(%loop), replica_groups={{0,1},{2,3}}, to_apply=%add, metadata={op_name="mean"}
  ROOT %part = ((f32[8], s8[16]), (f32[2], s8[4])) reduce-scatter-start(%all), replica_groups=mesh['a'=2,'b'=4,'c'=2] {'a','c'}
}
"""  # noqa: E501


def test_exchanges_of_a_program():
    rows = {
        (row.kind, row.shape): (row.times, row.size, row.devices)
        for row in list_collectives(PROGRAM, turns=5)
    }
    assert rows == {
        ("all-gather", "bf16[8,4]"): (3, 64, 4),
        ("collective-permute", "f32[8]"): (15, 32, 0),
        ("collective-permute", "f32[6]"): (1, 24, 0),
        ("all-reduce", "f32[8]"): (1, 32, 2),
        ("all-reduce", "(f32[8], f32[4])"): (1, 48, 3),
        ("reduce-scatter", "f32[2], s8[4]"): (1, 12, 4),
    }


def test_a_loop_of_unknown_length_counts_as_often_as_it_is_said_to_turn():
    shift = lambda **turns: next(n for line, n in count_lines(PROGRAM, **turns) if "%shift" in line)
    assert shift() == 3 and shift(turns=5) == 15


def test_exchanges_name_what_they_come_from_the_largest_first():
    names = [row.operation for row in list_collectives(PROGRAM)]
    assert names == ["", "inner", "", "mean", "moved", ""]
