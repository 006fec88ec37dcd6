"""The HTML report: what it says is what trials.csv holds, and nothing in it reaches out or breaks out."""

import csv
import html
import json
import re
import shutil
import subprocess
import sys
import time
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from leanfront.search.config import parse_config
from leanfront.search.report.data import best_speed_up, hypervolume_so_far, read_run
from leanfront.search.report.front import WEBGL_POINTS, front_figure
from leanfront.search.report.page import write_report
from leanfront.search.report.rungs import correlations, sensitivity_figure, surrogate_errors, time_shares
from leanfront.search.report.text import DASH, headline, next_steps, without_credentials
from leanfront.search.run.run_folder import COLUMNS, RunError
from leanfront.search.run.significance import save_scores

LAYERS = ("features.0", "features.4", "classifier")
BASELINE = {
    "accuracy": 0.9,
    "accuracy_ci": [0.89, 0.91],
    "latency_ms": 1.0,
    "energy_mj": 10.0,
    "size_bytes": 1_000_000,
    "peak_memory_bytes": 500_000,
}
START = datetime(2026, 1, 1, 22)


def policy(layers: tuple[str, ...] = LAYERS, **fields: Any) -> str:
    return json.dumps({name: {"sparsity": 0.25, "weight_bits": 8, **fields} for name in layers})


def trial(number: int, accuracy: float, latency_ms: float, **fields: Any) -> dict[str, Any]:
    started = START + timedelta(seconds=10 * number)
    return {
        "trial": number,
        "state": "complete",
        "accuracy": accuracy,
        "accuracy_low": accuracy - 0.01,
        "accuracy_high": accuracy + 0.01,
        "latency_ms": latency_ms,
        "energy_mj": 10 * latency_ms,
        "size_bytes": int(500_000 * latency_ms),
        "peak_memory_bytes": 250_000,
        "seconds": 10.0,
        "seconds_training": 7.0,
        "seconds_scoring": 2.0,
        "started": started.isoformat(),
        "finished": (started + timedelta(seconds=10)).isoformat(),
        "policy": policy(),
        **fields,
    }


TRIALS = (
    trial(0, 0.88, 0.5),
    trial(1, 0.895, 0.4),  # dominates trial 0
    trial(2, 0.85, 0.2, size_bytes=61_234),
    trial(3, 0.70, 0.3),
    {"trial": 4, "state": "infeasible", "reason": "latency_ms 2.5 is over the limit of 2"},
    {"trial": 5, "state": "infeasible", "reason": "latency_ms 3.25 is over the limit of 2"},
    {"trial": 6, "state": "failed", "reason": "nan"},
)


def make_run(folder: Path, trials: Any = TRIALS, environment: Any = None, **sections: Any) -> Path:
    folder.mkdir(parents=True)
    config = parse_config({"task": {"file": "/somewhere/task.py"}, **sections})
    (folder / "config.toml").write_text(config.to_toml())
    layers = [{"name": name, "shape": "conv2d 3x3 3->64 @32x32", "group": None} for name in LAYERS]
    environment = {"baseline": BASELINE, "layers": layers, "profile": "toy", **(environment or {})}
    (folder / "environment.json").write_text(json.dumps(environment))
    with (folder / "trials.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(trials)
    return folder


def own_part(page: str) -> str:
    """The page without plotly's own source."""
    before, rest = page.split("<script>", 1)
    return before + rest.split("</script>", 1)[1]


def cells(page: str) -> list[list[str]]:
    """The texts of the front's table, row by row."""
    table = page.split('id="front-table"')[1].split("<tbody>")[1].split("</tbody>")[0]
    rows = table.split("<tr")[1:]
    texts = [re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row, re.S) for row in rows]
    return [[html.unescape(re.sub(r"\s*<[^>]*>\s*", " ", text)).strip() for text in row] for row in texts]


def test_the_table_holds_the_numbers_of_the_file(tmp_path: Path) -> None:
    page = write_report(make_run(tmp_path / "run")).read_text()
    times = "\N{MULTIPLICATION SIGN}"
    fast = (f"61.2 kB 16.3{times}", f"2.00 mJ 5.0{times}", f"250 kB 2.0{times}", "")
    accurate = (f"200 kB 5.0{times}", f"4.00 mJ 2.5{times}", f"250 kB 2.0{times}", "baseline")
    assert cells(page) == [
        ["baseline", "90.00 % 89.00 to 91.00", "", "1.00 ms", "1.00 MB", "10.0 mJ", "500 kB", ""],
        ["2", "85.00 % 84.00 to 86.00", "5.00", f"200 us 5.0{times}", *fast],
        ["1", "89.50 % 88.50 to 90.50", "0.50", f"400 us 2.5{times}", *accurate],
    ]
    assert "estimated" in page.split('id="front-table"')[1].split("</thead>")[0]


def test_the_sentence_and_the_next_step(tmp_path: Path) -> None:
    data = read_run(make_run(tmp_path / "run"))
    times = "\N{MULTIPLICATION SIGN}"
    assert headline(data) == (
        f"At no more than 1 point of drop: 2.5{times} faster and 5.0{times} smaller in one network, trial 1."
    )
    assert next_steps(data)[0][1] == f"leanfront pick {tmp_path / 'run'} --max-drop 0.01"


def test_a_tighter_limit_of_the_run_is_the_drop_that_is_told(tmp_path: Path) -> None:
    tight = read_run(make_run(tmp_path / "tight", limits={"max_drop": 0.008}))
    assert "0.8 points of drop" in headline(tight)
    loose = read_run(make_run(tmp_path / "loose", limits={"max_drop": 0.05}))
    assert headline(loose).startswith("At no more than 1 point of drop")


def test_nothing_within_the_drop(tmp_path: Path) -> None:
    data = read_run(make_run(tmp_path / "run", TRIALS[2:]))
    assert "No network within 1 point of drop yet: the nearest, trial 2, loses 5.00 points" in headline(data)
    assert next_steps(data)[1][1].endswith("--max-drop 0.05")


def test_states_and_reasons_are_counted(tmp_path: Path) -> None:
    page = write_report(make_run(tmp_path / "run")).read_text()
    for text in ("4 complete", "2 infeasible", "1 failed", "2 infeasible trials broke a limit"):
        assert text in page
    reasons = re.findall(r"<tr><td>(\w+)</td><td>(\d+)</td><td class=\"text\">(.*?)</td>", page)
    assert reasons == [("failed", "1", "nan"), ("infeasible", "2", TRIALS[4]["reason"])]
    assert "training 70.0 %" in page
    assert "scoring 20.0 %" in page
    assert "other 10.0 %" in page


def test_hostile_names_stay_text(tmp_path: Path) -> None:
    evil = "</script><script>alert(1)</script><img src=x onerror=alert(2)>\"'"
    layers = (f"a{evil}", f"b{evil}")
    run = make_run(
        tmp_path / "run<b>",
        [trial(0, 0.89, 0.5, policy=policy(layers)), {"trial": 1, "state": "failed", "reason": evil}],
        {
            "profile": evil,
            "layers": [{"name": name, "shape": evil} for name in layers],
            "versions": {evil: evil},
        },
        task={"file": "/task.py", "options": {"data": evil}},
    )
    exported = run / "exported" / "0"
    exported.mkdir(parents=True)
    (exported / "verification.json").write_text(json.dumps({evil: evil}))
    page = own_part(write_report(run).read_text())
    assert "alert(1)" in page
    assert "<script>alert" not in page
    assert "<img" not in page
    assert "run<b>" not in page
    blocks = re.findall(r'<script type="application/json"[^>]*>(.*?)</script>', page, re.S)
    assert [json.loads(block) for block in blocks]
    assert all("<" not in block and ">" not in block for block in blocks)


def test_nothing_is_loaded_from_elsewhere(tmp_path: Path) -> None:
    page = write_report(make_run(tmp_path / "run")).read_text()
    own = own_part(page)
    assert len(page) > len(own) + 1_000_000, "plotly.js must be within the page"
    assert page.count("plotly.js v") == 1
    assert not re.search(r"<(script|link|img|iframe|object|embed)[^>]*\s(src|href|data)\s*=", own)
    assert not re.search(r"@import|url\(", own)
    assert "https:" not in own
    assert "http:" not in own
    assert "default-src 'none'" in own
    assert 'modeBarButtons: [["toImage", "zoom2d", "pan2d", "resetScale2d"]]' in own, (
        "no button sends data away"
    )


def test_a_run_without_trials_says_so_and_a_moved_one_works(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", [])
    (run / "trials.csv").unlink()
    (run / "environment.json").unlink()
    page = write_report(run).read_text()
    assert "No trial is complete yet" in page
    assert "data-figure=" not in own_part(page).split("<script>")[0]
    shutil.move(make_run(tmp_path / "other"), tmp_path / "moved")
    assert f"leanfront pick {tmp_path / 'moved'} " in re.sub(
        "</?span>", "", write_report(tmp_path / "moved").read_text()
    )


def test_only_infeasible_trials(tmp_path: Path) -> None:
    data = read_run(make_run(tmp_path / "run", TRIALS[4:6]))
    assert headline(data) == "No trial is complete yet (2 infeasible), so there is no front to show."
    assert "2 trials broke a limit" in write_report(data.path).read_text()


def test_missing_baseline_and_costs(tmp_path: Path) -> None:
    row = trial(0, 0.8, 0.5, energy_mj="", peak_memory_bytes="", size_bytes="", policy=policy(("x",)))
    page = write_report(make_run(tmp_path / "run", [row], {"baseline": None, "layers": None})).read_text()
    dash = "\N{EN DASH}"
    assert cells(page) == [["0", "80.00 % 79.00 to 81.00", dash, f"500 us {dash}", ""]]


def test_verified_exports_are_shown(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    assert "Picked and verified" not in write_report(run).read_text()
    (run / "exported" / "1").mkdir(parents=True)
    found = {
        "trial": 1,
        "test": {
            "accuracy": 0.8,
            "accuracy_ci": [0.79, 0.81],
            "baseline_accuracy": 0.85,
            "agreement": 0.999,
            "drop": 0.05,
            "drop_ci": [0.03, 0.07],
        },
        "limit": {"max_drop": 0.01, "broken": True},
        "latency": {"predicted_ms": 0.44, "measured_ms": 0.4, "baseline_ms": 1.0, "error": 0.1},
        "size": {"bytes": 100_000, "baseline_bytes": 1_000_000},
        "failures": ["layers not run as integer kernels: <b>"],
    }
    (run / "exported" / "1" / "verification.json").write_text(json.dumps(found))
    (run / "exported" / "2").mkdir()
    (run / "exported" / "2" / "verification.json").write_text(
        '{"latency": {}, "failures": [], "untold": ["its latency"]}'
    )
    table = write_report(run).read_text().split('class="exports"')[1].split("</table>")[0]
    rows = {row[0]: row[1:] for row in re.findall(r"<tr><td>(.*?)</td><td>(.*?)</td><td>(.*?)</td>", table)}
    rows = {
        name: tuple(" ".join(re.sub("<[^>]*>", " ", text).split()) for text in rows[name]) for name in rows
    }
    dash = "\N{EN DASH}"
    assert rows == {
        "verdict": (
            "layers not run as integer kernels: &lt;b&gt;",
            "as promised, but not verified: its latency",
        ),
        "accuracy (test split, read once)": ("0.8000 -5.00 points uncompressed 0.8500", dash),
        "its 95 % interval": ("0.7900 .. 0.8100", dash),
        "lost, with its 95 % interval": ("0.0500 (0.0300 .. 0.0700) BEYOND the limit 0.0100", dash),
        "latency, measured": ("400 us 0.400x uncompressed 1.00 ms", dash),
        "as the search predicted": ("440 us +10.0 %", dash),
        "model file": ("100 kB 1/10.0 uncompressed 1.00 MB", dash),
        "same answers as the torch network": ("99.90%", dash),
    }
    assert headline(read_run(run)).endswith(
        "Trial 1, which was picked, loses 5.00 points on the test split (3.00 to 7.00), beyond the limit of"
        " 1 point of drop."
    )
    (run / "exported" / "1" / "verification.json").write_text('{"test": {"accuracy": 0.8}}')
    with pytest.raises(RunError, match=r"exported/1/verification.json has no 'baseline_accuracy'"):
        write_report(run)


def test_the_front_follows_the_objectives(tmp_path: Path) -> None:
    rows = [trial(0, 0.89, 0.4), trial(1, 0.88, 0.5, size_bytes=10)]
    two = make_run(tmp_path / "two", rows)
    three = make_run(
        tmp_path / "three", rows, search={"objectives": ["accuracy", "latency_ms", "size_bytes"]}
    )
    assert list(read_run(two).front.trial) == [0]
    assert list(read_run(three).front.trial) == [0, 1]


def test_progress_on_paper(tmp_path: Path) -> None:
    # Baseline 0.9 at 1.0 ms: accuracy counts from 0.8 in tenths, latency in halvings.
    rows = [trial(0, 0.85, 0.5), trial(1, 0.85, 0.6), trial(2, 0.89, 0.5**0.5), trial(3, 0.5, 0.1)]
    data = read_run(make_run(tmp_path / "run", rows))
    assert hypervolume_so_far(data).tolist() == pytest.approx([0.5, 0.5, 0.5 + 0.4 * 0.5, 0.7])
    assert best_speed_up(data, 0.01).tolist() == pytest.approx([np.nan, np.nan, 2**0.5, 2**0.5], nan_ok=True)
    assert best_speed_up(data, 0.05).tolist() == pytest.approx([2.0, 2.0, 2.0, 2.0])


def test_pauses_are_left_out_of_the_hours(tmp_path: Path) -> None:
    rows = [trial(0, 0.85, 0.5), trial(1, 0.85, 0.5), trial(360, 0.85, 0.5)]  # an hour later
    hours = read_run(make_run(tmp_path / "run", rows)).trials.hours
    assert (3600 * hours).tolist() == pytest.approx([10, 20, 30])


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("trials.csv", "trial,state\n0,complete\n", "no column 'reason'"),
        ("trials.csv", ",".join(COLUMNS) + "\n<b>" + "," * (len(COLUMNS) - 1), "cannot be read"),
        ("environment.json", "{", "cannot be read"),
        ("exported/1/verification.json", "[]", "must hold a JSON object"),
    ],
)
def test_a_broken_file_is_named(tmp_path: Path, name: str, content: str, told: str) -> None:
    run = make_run(tmp_path / "run")
    (run / name).parent.mkdir(parents=True, exist_ok=True)
    (run / name).write_text(content)
    with pytest.raises(RunError, match=told) as error:
        write_report(run)
    assert name in str(error.value)
    assert not (run / "report.html").exists()


def test_no_run_folder(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="not a run folder"):
        write_report(tmp_path)


def test_credentials_are_cut_out() -> None:
    assert without_credentials('storage = "mysql://me:secret@host/db"') == 'storage = "mysql://…@host/db"'


def test_ten_thousand_trials_take_seconds(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    latencies = random.uniform(0.1, 1.0, 10_000)
    accuracies = 0.9 - 0.05 / latencies * random.uniform(0.1, 1.0, 10_000)
    layers = tuple(f"layer{index}" for index in range(50))
    text = policy(layers, activation_bits=8)
    run = make_run(
        tmp_path / "run",
        [trial(i, a, x, policy=text) for i, (a, x) in enumerate(zip(accuracies, latencies, strict=True))],
    )
    started = time.perf_counter()
    page = write_report(run)
    seconds = time.perf_counter() - started
    assert seconds < 5.0
    assert page.stat().st_size < 8_000_000
    figure = front_figure(read_run(run))
    assert figure.data[0].type == "scattergl"
    assert len(figure.data[0].x) > WEBGL_POINTS


def test_torch_is_not_loaded(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    script = (
        "import sys; from pathlib import Path; import leanfront.search.report.page\n"
        "assert not {'pandas', 'plotly', 'jinja2'} & set(sys.modules)\n"
        f"leanfront.search.report.page.write_report(Path({str(run)!r}))\n"
        "assert 'torch' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True, cwd=Path(__file__).parents[3])
    assert pd.read_csv(run / "trials.csv").shape[0] == len(TRIALS)


def test_the_validation_is_shown_and_a_bad_one_at_the_top(tmp_path: Path) -> None:
    rows = [{"predicted_ms": 0.11, "measured_ms": 0.1, "spread": 0.02}]
    good = {"n": 1, "mape": 0.04, "within_10_percent": 1.0, "spearman": 0.99, "noise": None, "rows": rows}
    page = own_part(
        write_report(make_run(tmp_path / "good", environment={"latency_validation": good})).read_text()
    )
    assert 'role="alert"' not in page
    assert "+10.0 %" in page
    assert 'data-figure="validation"' in page
    bad = good | {"mape": 0.13, "noise": "it was <noisy>"}
    page = own_part(
        write_report(make_run(tmp_path / "bad", environment={"latency_validation": bad})).read_text()
    )
    assert "off by 13 % on average" in page
    assert "it was &lt;noisy&gt;" in page
    assert page.index('role="alert"') < page.index("<h2>Front</h2>")


def test_rungs_sensitivities_and_where_the_time_went(tmp_path: Path) -> None:
    def reached(*scores: tuple[float, float]) -> str:
        images = (0, 1536, 8192)
        return json.dumps(
            [
                {"rung": i, "images": images[i], "accuracy": a, "divergence": d, "seconds": 1.0 + i}
                for i, (a, d) in enumerate(scores)
            ]
        )

    # the first rung ranks all right, but for the best two; divergence ranks all right
    finals = [0.80, 0.82, 0.84, 0.86, 0.88, 0.89]
    firsts = [0.10, 0.20, 0.30, 0.40, 0.60, 0.50]
    rows = [
        trial(i, final, 0.1 * (i + 1), rung=2, rungs=reached((first, 1 - final), (final, 0.1), (final, 0.05)))
        for i, (first, final) in enumerate(zip(firsts, finals, strict=True))
    ]
    stopped = trial(6, 0.4, 0.9, state="pruned", rung=0, rungs=reached((0.4, 0.6)))
    for number, row in enumerate([*rows, stopped]):
        row["policy"] = policy(weight_bits=number + 2)
    rows.append(stopped)
    environment = {"sensitivities": {"seconds": 30.0, "images": 512, "baseline_divergence": 0.0}}
    run = make_run(tmp_path / "run", rows, environment)
    decisions = ["sparsity/a<b>", "sparsity/a<b>", "bits/c", "bits/c"]
    levels, divergences = ["0", "0.5", "w4a8", "w32a32"], [0.0, 0.25, 0.015, 0.0]
    lines = zip(decisions, [0, 1, 0, 1], levels, divergences, [0.9] * 4, strict=True)
    (run / "sensitivities.csv").write_text(
        "decision,code,level,divergence,accuracy\n" + "".join(",".join(map(str, x)) + "\n" for x in lines)
    )
    data = read_run(run)
    assert correlations(data) == [
        ("accuracy after 0 images with accuracy after 1536", 6, "0.94", "0.50"),
        ("divergence after 0 images with accuracy after 1536", 6, "1.00", "1.00"),
        ("accuracy after 1536 images with accuracy after 8192", 6, "1.00", "1.00"),
        ("divergence after 1536 images with accuracy after 8192", 6, DASH, DASH),  # all alike
    ]
    # 7 x 1 s, 6 x 2 s, 6 x 3 s of 7 x 10 s in trials, and 30 s before
    shares = {name: share for name, _, share in time_shares(data)}
    assert shares == pytest.approx(
        {
            "sensitivities": 30.0,
            "rung 0, 0 images": 7.0,
            "rung 1, 1536 images": 12.0,
            "rung 2, 8192 images": 18.0,
            "other": 33.0,
        }
    )
    page = own_part(write_report(run).read_text())
    for text in ("How well a rung foretells the next", "on 512 images", 'data-figure="sensitivity"'):
        assert text in page
    bits, sparsity = sensitivity_figure(data).data
    assert (list(bits.x), list(bits.y)) == (["w32a32", "w4a8"], ["c"])
    assert (list(sparsity.x), list(sparsity.y)) == (["0", "0.5"], ["a&lt;b&gt;"])
    assert list(sparsity.text[0]) == ["0", "0.25"]
    assert sparsity.z[0][1] == pytest.approx(np.log10(0.25))


def test_the_first_rung_of_a_policy_that_went_on_later_took_its_time_once(tmp_path: Path) -> None:
    first = {"rung": 0, "images": 0, "accuracy": 0.5, "divergence": 1.0, "seconds": 4.0}
    second = {"rung": 1, "images": 96, "accuracy": 0.8, "divergence": 0.1, "seconds": 6.0}
    rows = [
        trial(0, 0.5, 0.5, state="pruned", seconds=4.0, rungs=json.dumps([first])),
        trial(1, 0.8, 0.5, seconds=6.0, rungs=json.dumps([first, second])),
    ]
    shares = {name: share for name, _, share in time_shares(read_run(make_run(tmp_path / "run", rows)))}
    assert shares == pytest.approx({"rung 0, 0 images": 40.0, "rung 1, 96 images": 60.0, "other": 0.0})


def test_members_alike_within_noise_are_named(tmp_path: Path) -> None:
    rows = [trial(0, 0.880, 0.3), trial(1, 0.881, 0.4), trial(2, 0.899, 0.5)]
    run = make_run(tmp_path / "run", rows)
    assert read_run(run).alike == {0: (), 1: ("#0",), 2: ("baseline",)}
    order = np.arange(1000)
    for name, right in {
        "0": order < 880,
        "1": order < 881,
        "2": order < 899,
        "baseline": order < 920,
    }.items():
        save_scores(run / "scores" / f"{name}.npz", {8192: right.astype(np.float32)})
    # paired, 19 of 1000 more and none fewer are no noise
    assert read_run(run).alike == {0: (), 1: ("#0",), 2: ()}


def test_what_the_sampler_expected_is_held_against_what_came_out(tmp_path: Path) -> None:
    """120 trials, off by 6 points at first, then 3, then 1; thirds are by number, not by its text."""
    rows = [
        trial(i, accuracy := 0.80 + 0.0005 * i, 0.5, expected_accuracy=accuracy + error)
        for i, error in enumerate([0.06] * 40 + [-0.03] * 40 + [0.01] * 40)
    ]
    run = make_run(tmp_path / "run", rows)
    assert surrogate_errors(read_run(run)) == [
        ("first third, from trial 0", 40, "6.00", "1.00"),
        ("second third, from trial 40", 40, "3.00", "1.00"),
        ("last third, from trial 80", 40, "1.00", "1.00"),
    ]
    assert "What the sampler expected" in own_part(write_report(run).read_text())
    few = make_run(tmp_path / "few", rows[:10])
    assert surrogate_errors(read_run(few)) == []


def test_the_time_of_heirs_is_a_part_of_its_own(tmp_path: Path) -> None:
    rows = [trial(0, 0.9, 0.5, seconds=30.0), trial(1, 0.89, 0.4, seconds=10.0, weights_of=0)]
    shares = {name: share for name, _, share in time_shares(read_run(make_run(tmp_path / "run", rows)))}
    assert shares["heirs"] == pytest.approx(25.0)
    assert "heirs" not in {
        name for name, _, _ in time_shares(read_run(make_run(tmp_path / "none", rows[:1])))
    }
    parts = [{**row, "seconds_training": row["seconds"] - 4.0, "seconds_scoring": 4.0} for row in rows]
    shares = {name: share for name, _, share in time_shares(read_run(make_run(tmp_path / "one", parts)))}
    assert shares == pytest.approx({"training": 65.0, "scoring": 10.0, "other": 0.0, "heirs": 25.0})


def test_members_made_of_another_trial_say_so(tmp_path: Path) -> None:
    rows = [trial(3, 0.9, 0.5), trial(4, 0.89, 0.4, weights_of=3)]
    page = write_report(make_run(tmp_path / "run", rows)).read_text()
    (table,) = re.findall(r'<table id="front-table">.*?</table>', page, re.S)
    assert re.findall(r'<th scope="row">(\d+)(?: <small>from (\d+)</small>)?</th>', table) == [
        ("4", "3"),
        ("3", ""),
    ]
    assert "from the weights of 3" in page  # under the mouse
    assert "not trained further" in own_part(page)
