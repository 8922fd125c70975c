"""``fastssl bench codegen``: the reader of machine code against counts made by hand, and the
shipped kernels against what is kept."""

from __future__ import annotations

import shutil

import pytest
from fastssl_kernels.similarity_lse_shapes import TILES

from bench.codegen import baseline, catalogue, command, compile, predict, sass, sweep
from bench.codegen.chip import CHIPS

H200, A100 = CHIPS["H200"], CHIPS["A100"]

# A loop over an inner loop, a guarded detour, a store, and the padding after the end.
LISTING = """
	code for sm_90a
		Function : _by_hand
        /*0000*/                   MOV R1, c[0x0][0x28] ;        /* 0x00 */
                                                                 /* 0x00 */
        /*0010*/                   HGMMA.64x128x16.F32.BF16 R24, gdesc[UR24], RZ, !UPT ; /* 0x00 */
        /*0020*/              @!P1 BRA 0x10 ;                    /* 0x00 */
        /*0030*/               @P0 BRA P3, 0x60 ;                /* 0x00 */
        /*0040*/                   FSEL R1, R1, R2, P0 ;         /* 0x00 */
        /*0050*/                   FSEL R1, R1, R2, P0 ;         /* 0x00 */
        /*0060*/                   MUFU.EX2 R1, R1 ;             /* 0x00 */
        /*0070*/              @!PT LDS RZ, [RZ] ;                /* 0x00 */
        /*0080*/                   LDS.64 R2, [R3] ;             /* 0x00 */
        /*0090*/               @P0 LDGSTS.E.BYPASS.128 [R15], desc[UR48][R6.64], P2 ; /* 0x00 */
        /*00a0*/              @!P2 BRA 0x10 ;                    /* 0x00 */
        /*00b0*/                   STG.E.128 desc[UR4][R2.64], R4 ; /* 0x00 */
        /*00c0*/                   EXIT ;                        /* 0x00 */
        /*00d0*/                   BRA 0xd0;                     /* 0x00 */
        /*00e0*/                   NOP;                          /* 0x00 */
"""


def test_a_listing_by_hand():
    ((name, code),) = sass.functions(LISTING).items()
    graph = sass.blocks(code)
    assert name == "_by_hand"
    assert len(code) == 14
    assert graph.keys() == {0x00, 0x10, 0x30, 0x40, 0x60, 0xB0}
    assert graph[0x30].after == [0x60, 0x40]
    assert graph[0xB0].after == []
    main, inner = sass.main_loop(graph)
    assert (main.head, main.blocks) == (0x10, {0x10, 0x30, 0x40, 0x60})
    # Both loops begin with one block: the inner one is not told apart, so it is one loop.
    assert inner == []
    mix = sass.turn(graph, main, inner, 1)
    assert mix["alu"] == 0, "the guarded detour is not on the way"
    assert mix["tensor"] == mix["exp"] == mix["xu"] == 1
    assert mix["flop"] == 2 * 64 * 128 * 16 // 4
    assert mix["operands"] == (64 + 128) * 32 // 4
    assert mix["load"] == 32 * 16
    assert mix["shared"] == 32 * 8 + 32 * 16, "a load that never happens moves nothing"
    assert mix["issue"] == 8


def test_an_inner_loop_turns_as_often_as_it_is_told():
    # The outer loop begins one instruction before the inner one.
    listing = LISTING.replace("@!P2 BRA 0x10", "@!P2 BRA 0x00")
    graph = sass.blocks(sass.functions(listing)["_by_hand"])
    main, inner = sass.main_loop(graph)
    assert main.head == 0x00
    assert [loop.blocks for loop in inner] == [{0x10}]
    once, often = (sass.turn(graph, main, inner, trips) for trips in (1, 5))
    assert often["flop"] == 5 * once["flop"]
    assert often["exp"] == once["exp"] == 1
    assert often["issue"] == once["issue"] + 4 * 2


@pytest.mark.parametrize(
    ("word", "operands", "flop", "matrix", "shared"),
    [
        ("HGMMA.64x128x16.F32.BF16", "R24, gdesc[UR24], R24", 262144, 262144, 6144),
        ("HGMMA.64x128x16.F32.BF16", "R88, R152, gdesc[UR20].tnspB, R88", 262144, 262144, 4096),
        ("HGMMA.64x64x8.F32.TF32", "R24, gdesc[UR24], R24", 65536, 131072, 4096),
        ("HMMA.16816.F32.BF16", "R4, R8, R12, R4", 4 * 4096, 4 * 4096, 0),
        ("HMMA.1688.F32.TF32", "R4, R8, R12, R4", 4 * 2048, 4 * 4096, 0),
        ("DMMA.884", "R4, R8, R12, R4", 4 * 512, 64 * 512, 0),
    ],
)
def test_matrix_instructions(word, operands, flop, matrix, shared):
    found = sass.amounts(sass.Instruction(0, "", word, operands))
    four_warps = [4 * found.get(what, 0) for what in ("flop", "matrix", "operands")]
    assert four_warps == [flop, matrix, shared]


@pytest.mark.parametrize(
    ("word", "what", "amount"),
    [
        ("LDS", "shared", 128), ("STS.128", "shared", 512), ("LDS.U16", "shared", 64),
        ("LDSM.16.M88.4", "shared", 512), ("LDSM.16.M88", "shared", 128),
        ("LDG.E.128", "load", 512), ("LDG.E.64", "read", 256), ("STG.E", "store", 128),
        ("STL.64", "local", 1), ("F2FP.BF16.F32.PACK_AB", "alu", 1),
        ("F2F.F64.F32", "xu", 1), ("DMUL", "fp64", 1),
    ],
)  # fmt: skip
def test_other_instructions(word, what, amount):
    assert sass.amounts(sass.Instruction(0, "P0", word, "R1, [R2]"))[what] == amount


# Products of a tile by features; D = 512 goes by chunks, an inner loop.
@pytest.mark.parametrize(
    ("chip", "d", "options"),
    [
        (H200, 128, {}),
        (H200, 512, {}),
        (H200, 128, {"m": 256, "k": 65536, "mean": True}),
        (H200, 128, {"k": 8192, "columns": True}),
        (A100, 128, {}),
    ],
    ids=["nt_xent", "chunks", "moco", "clip", "A100"],
)
def test_a_turn_holds_the_tiles_work_and_no_more(chip, d, options):
    met = 0
    for launch in catalogue.similarity(chip, d=d, **options):
        name, values = launch.kernel.__name__, launch.values
        if name not in predict.PRODUCTS:
            continue
        met += 1
        m = values["BLOCK_M"]
        n = values["BLOCK_N"]
        widths = d + (values["BLOCK_OUT"] if "bwd" in name or "mean" in name else 0)
        mix = predict.predict(launch, chip).mix
        assert mix["flop"] == 2 * m * n * widths, name
        assert 32 * mix["exp"] == m * n, name
        assert mix["load"] >= 2 * min(m, n) * d, name  # bytes of the tile that the next turn needs
    assert met


def made(warps: int, registers: int, shared: int) -> compile.Machine:
    return compile.Machine("_by_hand", warps, registers, 0, shared, [])


@pytest.mark.parametrize(
    ("machine", "fits"),
    [
        (made(8, 233, 0), 1),  # 240 · 256 registers, of 65,536
        (made(8, 128, 0), 2),
        (made(4, 32, 0), 16),  # 2,048 threads
        (made(1, 32, 0), 32),  # programs
        (made(4, 32, 100 * 1024), 2),
        (made(4, 32, 227 * 1024), 1),
        (made(4, 32, 228 * 1024), 0),
    ],
)
def test_resident_programs(machine, fits):
    assert predict.resident(machine, H200) == fits


def test_what_is_predicted_from_cycles():
    two = predict.Prediction(
        "k", "H200", "", 1, 0, 0, 2, {}, {"xu": 100.0}, 100.0, 150.0, "logit", 10, 1
    )
    assert two.likely == 100
    assert two.bound == "xu"
    alone = two._replace(resident=1)
    assert alone.likely == 150
    assert alone.bound == "xu, waiting"
    assert alone.ps(H200) == pytest.approx(1e3 * 15 / 132 / 1.8)


def test_the_roofline_is_that_of_the_facts():
    (backward,) = (
        launch for launch in catalogue.similarity(H200) if "bwd_kernel" in launch.kernel.__name__
    )
    found = predict.predict(backward, H200)
    assert found.roofline == pytest.approx(2 * 0.324, rel=0.01)  # ps a logit and product at D=128


ROW = {"shape": "128×128 w8", "spills": 0, "tensor": 8, "unit": "logit", "ps": 1.0, "bound": "xu"}


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({}, None),
        ({"ps": 1.04}, None),
        ({"ps": 1.06}, "predicted at 1.060 ps"),
        ({"spills": 8}, "spills: 8"),
        ({"tensor": 0}, "no tensor-core instruction"),
        ({"tensor": 0, "unit": "byte"}, None),
    ],
)
def test_a_change_is_refused_by_name(change, says):
    name = "H200 / nt_xent / _kernel"
    said = baseline.complaints({name: ROW | change}, {name: ROW})
    assert len(said) == (says is not None)
    assert all(says in line and name in line and "128×128 w8" in line for line in said)
    alone = baseline.complaints({name: ROW | change}, None)  # another compiler's figures
    assert len(alone) == (says is not None and "predicted" not in says)


def test_known_spills_are_known_and_more_are_refused():
    kept = {"k": ROW | {"spills": 8}}
    assert not baseline.complaints(kept, kept)
    assert baseline.complaints({"k": ROW | {"spills": 9}}, kept)


def test_the_shipped_kernels_are_no_worse_than_what_is_kept():
    kept = baseline.kept()
    found = baseline.rows(catalogue.SMALL, H200)
    assert not baseline.complaints(found, kept)
    if kept is not None:
        assert found.keys() <= kept.keys(), "fastssl bench codegen --write"


def test_a_sweep_leaves_the_table_as_it_was(monkeypatch):
    before = {family: dict(table) for family, table in TILES.items()}
    for name, few in (("ROWS", (64,)), ("COLUMNS", (32,)), ("WARPS", (4,)), ("STAGES", (2,))):
        monkeypatch.setattr(sweep, name, few)
    (own, tiles, found), (other, small, less) = sweep.sweep("mean", H200, 128)
    assert (own, other) == (True, False)
    assert tiles == TILES["hopper"]["mean", 2, 128]
    assert small[:4] == (64, 32, 4, 2)
    assert found.units == tiles.block_m * tiles.block_n
    assert less.units == 64 * 32
    assert before == TILES


def test_commands(capsys):
    assert command.main(["--case", "ema_update"]) == 0
    assert "_ema_update_fwd_kernel | 4096 w8" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        command.main(["--case", "nothing of the kind"])
    assert "nothing of the kind is in a name of" in capsys.readouterr().err


def test_what_is_kept_grows_by_what_is_written(tmp_path):
    path = tmp_path / "codegen.json"
    ((name, row),) = baseline.rows(catalogue.SMALL[-1:], H200).items()
    goals = {"H200": [{"name": "op", "predicted_ms": 2.0, "goal_ms": 1.0, "floor_ms": 0.5}]}
    baseline.save({name: row}, goals, path)
    baseline.save({"H200 / other": row}, {}, path)
    (rows,) = baseline.load(path).values()
    assert rows == {name: row, "H200 / other": row}
    page = path.with_suffix(".md").read_text()
    assert name in page
    assert "| op | 2 | 1 | 0.5 | no |" in page


SAXPY = """
extern "C" __global__ void saxpy(float a, const float4 *x, float4 *y) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  const float4 u = x[i];
  float4 v = y[i];
  v.x += a * u.x, v.y += a * u.y, v.z += a * u.z, v.w += a * u.w;
  y[i] = v;
}
"""


@pytest.mark.skipif(shutil.which("nvcc") is None, reason="no nvcc")
def test_a_cuda_file(tmp_path):
    path = tmp_path / "saxpy.cu"
    path.write_text(SAXPY)
    (saxpy,) = compile.cuda(path, 90)
    assert (saxpy.name, saxpy.spills) == ("saxpy", 0)
    mix = predict.count(saxpy._replace(warps=1), 1)
    assert mix["load"] == 2 * 512
    assert mix["store"] == 512
    assert mix["fp32"] == 4
    path.write_text("no C++")
    with pytest.raises(RuntimeError, match=r"nvcc does not compile saxpy\.cu"):
        compile.cuda(path, 90)
