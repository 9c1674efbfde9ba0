"""The page about a run: what it shows, what it says when a file is missing, and that hostile text stays text."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import pytest

from tests.views.conftest import HOSTILE
from upslope.errors import InputError, MachineError
from upslope.views.page import Section
from upslope.views.report import (
    curves_section,
    facts_section,
    image_section,
    page,
    phase_section,
    rollouts_section,
    summary_section,
    table_section,
    text_section,
    write_page,
    write_report,
)

MakeRun = Callable[..., Path]
VOID = {"meta", "br", "img", "input", "hr", "link"}


class Reader(HTMLParser):
    """Elements with their attributes, the text of the page, and whether every tag is closed in order."""

    def __init__(self, markup: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.texts: list[str] = []
        self.balanced = True
        self.feed(markup)
        self.close()
        self.balanced = self.balanced and not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        self.balanced = self.balanced and bool(self.open) and self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.texts).split())


def titles(section: Section) -> list[str]:
    """The titles of the charts of a section."""
    return re.findall(r"<figcaption><b>([^<]*)</b>", section.html)


# ------------------------------------------------------------------------------------------------------- the whole page
@pytest.mark.parametrize("kind", ["sft", "ppo", "grpo"])
def test_a_report_is_written_for_every_recipe(make_run: MakeRun, kind: str) -> None:
    run = make_run(kind)
    path = write_report(run)
    read = Reader(path.read_text(encoding="utf-8"))
    assert path == run / "report.html"
    assert read.balanced
    assert not [p for p in read.all("p") if p.get("class") == "missing"]
    assert f"{kind} · smollm2-135m-instruct · cpu · bfloat16 · finished" in read.text
    headings = [
        title for title in ("Result", "Curves", "Sampled completions", "Where the time went") if title in read.text
    ]
    assert ("Sampled completions" in headings) == (kind != "sft") and len(headings) == (3 if kind == "sft" else 4)


def test_the_page_loads_nothing_and_its_policy_allows_only_its_own_script(make_run: MakeRun) -> None:
    markup = write_report(make_run()).read_text(encoding="utf-8")
    read = Reader(markup)
    policy = next(meta["content"] for meta in read.all("meta") if meta.get("http-equiv") == "Content-Security-Policy")
    scripts = re.findall(r"<script>(.*?)</script>", markup, re.S)
    digest = base64.b64encode(hashlib.sha256(scripts[0].encode()).digest()).decode()
    assert len(scripts) == len(read.all("script")) == 1
    assert policy is not None and policy.startswith("default-src 'none'; style-src 'unsafe-inline'; img-src data:;")
    assert f"script-src 'sha256-{digest}'" in policy
    assert not read.all("link") and not read.all("iframe") and not read.all("form")
    for tag, attributes in read.elements:
        assert not [name for name in attributes if name.startswith("on")], tag
        for name in ("src", "href", "action"):
            value = attributes.get(name)
            assert value is None or value.startswith(("#", "data:image/")), (tag, value)
    assert "http:" not in markup and "https:" not in markup and "@import" not in markup and "url(" not in markup


def test_links_at_the_top_lead_to_sections() -> None:
    read = Reader(page("T", "S", [text_section("A & b", "x"), text_section("A & b", "y"), text_section("日本", "z")]))
    targets = [attributes["href"] for attributes in read.all("a")]
    assert targets == ["#" + str(attributes["id"]) for attributes in read.all("section")]
    assert len(set(targets)) == 3


def test_the_page_knows_light_dark_and_phones() -> None:
    markup = page("T", "", [])
    assert "prefers-color-scheme: dark" in markup and "width=device-width" in markup and "max-width: 640px" in markup


def test_hostile_text_is_text_wherever_it_stands(make_run: MakeRun) -> None:
    run = make_run(steps=20)
    facts = json.loads((run / "run.json").read_text()) | {"run": HOSTILE, "model": HOSTILE, "git": {HOSTILE: HOSTILE}}
    (run / "run.json").write_text(json.dumps(facts))
    (run / "recipe.yaml").write_text("x: </pre><script>alert(1)</script>")
    row = {"group": HOSTILE, "prompt": HOSTILE, "completion": HOSTILE, "answer": HOSTILE, "reward": 1.0}
    row |= {"parts": {HOSTILE: HOSTILE}, "advantage": 0.5, "terminated": [HOSTILE], "token_ids": HOSTILE}
    (run / "rollouts" / "step-00020.jsonl").write_text(json.dumps(row) + "\n")
    with (run / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"step": 21, f"rewards/{HOSTILE}/mean": 1.0, "rewards/b/mean": 2.0}) + "\n")
    sections = [
        curves_section({HOSTILE: run, "b": run}),
        table_section(HOSTILE, [HOSTILE], [[HOSTILE]], HOSTILE),
        text_section(HOSTILE, HOSTILE),
        image_section(HOSTILE, b"\x89PNG\r\n\x1a\n", HOSTILE, HOSTILE),
    ]
    for markup in (write_report(run).read_text(encoding="utf-8"), page(HOSTILE, HOSTILE, sections)):
        read = Reader(markup)
        assert read.balanced
        assert len(read.all("script")) == 1
        assert all(str(image.get("src")).startswith("data:image/") for image in read.all("img"))
        assert not [attributes for _, attributes in read.elements if "onerror" in attributes]
        assert "</script><img src=x onerror=alert(1)>" in read.text  # and it is shown
        assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202e\ud800-\udfff]", markup)


# ------------------------------------------------------------------------------------------------------ missing, broken
def test_an_almost_empty_run_folder_is_reported_with_what_is_missing(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text("grpo: {}")
    read = Reader(write_report(tmp_path).read_text(encoding="utf-8"))
    for words in ("metrics.jsonl is missing", "timings.jsonl is missing", "run.json is missing", "no curves"):
        assert words in read.text


def test_a_run_without_rollouts_says_so(make_run: MakeRun) -> None:
    run = make_run(steps=5)
    assert "rollouts/ holds no step-*.jsonl" in rollouts_section(run).html
    assert "rollouts/ holds no" in write_report(run).read_text(encoding="utf-8")


def test_torn_and_foreign_lines_are_skipped(make_run: MakeRun) -> None:
    run = make_run(steps=20)
    with (run / "metrics.jsonl").open("a") as file:
        file.write('[1]\n\n"x"\n{"no_step": 1}\n{"step": "x"}\n{"step": 20, "reward": 0.5}\n{"step": 21, "rew')
    with (run / "rollouts" / "step-00020.jsonl").open("a") as file:
        file.write("[" * 100_000 + "\n" + '{"prompt": 5, "completion": null, "reward": "x", "advantage": NaN')
    assert "<b>20</b><span>steps</span>" in summary_section(run).html
    assert "32 of 34 rows (2 not readable) of step 20" in rollouts_section(run, limit=40).html
    write_report(run)


def test_what_is_no_run_folder_is_an_input_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    (tmp_path / "empty").mkdir()
    for name, words in (("nothing", "no such folder"), ("file", "a file"), ("empty", "none of run.json")):
        for make in (write_report, rollouts_section, facts_section, phase_section, summary_section):
            with pytest.raises(InputError, match=words):
                make(tmp_path / name)
        with pytest.raises(InputError, match=words):
            curves_section({"a": tmp_path / name})


def test_a_page_that_cannot_be_written_leaves_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_page(tmp_path / "report.html", "old")

    def full(self: Path, text: str, encoding: str) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(MachineError, match="No space left"):
        write_page(path, "new")
    assert path.read_text() == "old" and [item.name for item in tmp_path.iterdir()] == ["report.html"]


# ------------------------------------------------------------------------------------------------------------- sections
def test_charts_follow_from_the_metrics(make_run: MakeRun) -> None:
    grpo, ppo, sft = (curves_section({"a": make_run(kind)}) for kind in ("grpo", "ppo", "sft"))
    common = {"Reward", "Held-out accuracy", "KL to the reference", "Entropy", "Completion length"}
    assert common | {"Cut by the length limit", "Groups with equal rewards"} <= set(titles(grpo))
    assert common | {"Explained variance of the critic", "Loss of the critic"} <= set(titles(ppo))
    assert titles(sft) == ["Loss", "Accuracy of the next token", "Gradient norm"]
    assert "held-out" in sft.html and "by design in GRPO" not in sft.html


def test_several_runs_lie_over_one_another_with_a_legend(make_run: MakeRun) -> None:
    section = curves_section({"first": make_run(seed=0), "second": make_run(seed=1)})
    legend = re.search(r'<div class="legend">(.*?)</div>', section.html)
    assert legend is not None
    assert legend[1] == '<span class="k c0">first</span><span class="k c1">second</span>'
    reward = next(part for part in section.html.split("</figure>") if "<b>Reward</b>" in part)
    assert reward.count('class="line c0"') == reward.count('class="line c1"') == 1
    assert "Reward, held-out" in titles(section)


def test_several_reward_functions_get_a_chart_each(make_run: MakeRun) -> None:
    run = make_run(steps=3)
    (run / "metrics.jsonl").write_text(
        "".join(f'{{"step": {k}, "rewards/length/mean": {k}, "rewards/exact/mean": 1}}\n' for k in (1, 2))
    )
    assert titles(curves_section({"a": run})) == ["Reward: exact", "Reward: length"]


def test_the_summary_holds_last_values_and_where_they_began(make_run: MakeRun) -> None:
    run = make_run(steps=3)
    rows = [{"step": k, "reward": 0.1 * k, "eval/accuracy": 0.3 + 0.1 * k, "kl": 0.02 * k} for k in range(1, 21)]
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    cards = dict(re.findall(r'<div class="card"><b>(.*?)</b><span>(.*?)</span>', summary_section(run).html))
    assert cards["1.550"] == "reward, last 10 steps, from 0.100"  # the mean of 1.1 .. 2.0
    assert cards["2.300"] == "held-out accuracy, from 0.400"
    assert cards["0.400"] == "nats of KL to the reference"
    assert cards["20"] == "steps"


def test_health_over_the_run_is_told_once_a_kind(make_run: MakeRun) -> None:
    text = Reader(summary_section(make_run("grpo")).html).text
    assert "equal groups , 2 of 60 steps (steps 7 to 8). Last: 8/8 groups" in text
    assert "by design" not in text
    assert "Nothing wrong in 60 steps" in summary_section(make_run("ppo")).html


def test_an_evaluation_before_training_counts_as_no_step(make_run: MakeRun) -> None:
    run = make_run("ppo", steps=20)
    for name, row in (("metrics", '{"step": 0, "eval/accuracy": 0.1}'), ("timings", '{"step": 0, "time/step": 50}')):
        path = run / f"{name}.jsonl"
        path.write_text(row + "\n" + path.read_text())
    html = summary_section(run).html
    assert "Nothing wrong in 20 steps" in html and "held-out accuracy, from 0.100" in html
    seconds = sum(json.loads(line)["time/step"] for line in (run / "timings.jsonl").read_text().splitlines()[1:])
    assert f"<b>{int(seconds // 60)}:{round(seconds) % 60:02}</b>" in html


def test_completions_have_their_numbers_and_coloured_advantages(make_run: MakeRun) -> None:
    run = make_run(steps=20)
    rows = [
        {"group": 0, "prompt": "p", "completion": "good\n", "reward": 1.0, "advantage": 0.5, "terminated": True},
        {"group": 0, "prompt": "p", "completion": "", "reward": 0.0, "advantage": -2.0, "terminated": False},
        {"group": 1, "prompt": [{"role": "user", "content": "hi"}], "completion": "x", "reward": None, "advantage": 0},
    ]
    rows[0] |= {"answer": 60, "token_ids": [5, 6, 7], "parts": {"exact": 1.0, "length": 0.25}}
    (run / "rollouts" / "step-00020.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    body = re.search(r'<tbody data-step="20">(.*?)</tbody>', rollouts_section(run).html, re.S)
    assert body is not None
    first, second, third = re.findall(r"<tr.*?</tr>", body[1], re.S)
    assert 'class="n adv up" style="--size:0.25"' in first and 'data-value="0.5"' in first
    assert "answer: 60" in first and ">3</td>" in first and "ended" in first
    assert 'title="exact 1.000, length 0.250"' in first
    assert 'class="n adv down" style="--size:1.00"' in second and "(empty)" in second and 'class="cut"' in second
    assert "user: hi" in third and "adv" not in third.replace("advantage", "") and 'data-label="reward">-<' in third
    assert [row.startswith('<tr class="first">') for row in (first, second, third)] == [True, False, True]


def test_the_step_selector_offers_spread_steps_with_first_and_last(make_run: MakeRun) -> None:
    section = rollouts_section(make_run(steps=200), limit=3)
    assert re.findall(r'<option value="(\d+)"( selected)?>', section.html) == [
        ("10", ""), ("50", ""), ("90", ""), ("120", ""), ("160", ""), ("200", " selected"),
    ]  # fmt: skip
    assert re.findall(r'<tbody data-step="(\d+)"', section.html) == ["10", "50", "90", "120", "160", "200"]
    assert "3 of 32 rows of step 10, 50" in section.html


def test_chosen_steps_are_shown_and_absent_ones_named(make_run: MakeRun) -> None:
    section = rollouts_section(make_run(steps=40), steps=[20, 25])
    assert re.findall(r'<tbody data-step="(\d+)"', section.html) == ["20"]
    assert "rollouts/step-00025.jsonl is not in this run; its steps: 10, 20, 30, 40." in section.html


def test_phases_add_up_with_what_no_phase_names(make_run: MakeRun) -> None:
    run = make_run(steps=2)
    (run / "timings.jsonl").write_text(
        '{"step": 1, "time/sampling": 2.0, "time/learning": 5.0, "time/step": 8.0, "tokens_per_second": 100}\n'
        '{"step": 2, "time/sampling": 2.0, "time/learning": 5.0, "time/step": 12.0, "tokens_per_second": 300}\n'
    )
    html = phase_section(run).html
    rows = re.findall(r'<tr><td><span class="k c\d">(\w+)</span></td>(.*?)</tr>', html)
    assert {name: re.findall(r">([^<]+)</td>", cells) for name, cells in rows} == {
        "sampling": ["20 %", "4.00 s", "2.00 s"],
        "learning": ["50 %", "10.0 s", "5.00 s"],
        "other": ["30 %", "6.00 s", "3.00 s"],
    }
    assert "<b>200.0</b><span>tokens a second sampled (median)</span>" in html
    assert [float(share) for share in re.findall(r"flex:([\d.]+)", html)] == [0.2, 0.5, 0.3]


def test_facts_show_run_json_and_the_recipe(make_run: MakeRun) -> None:
    read = Reader(facts_section(make_run()).html)
    for words in (
        "versions.torch 2.13.0",
        "memory_bytes 16.0 GiB",
        "git.dirty yes",
        "command upslope grpo recipes/x.yaml",
    ):
        assert words in read.text
    assert "task: arithmetic" in read.text


def test_a_table_sets_numbers_right_and_keeps_their_values() -> None:
    html = table_section("T", ["run", "reward", "ok"], [["a", 0.51234, True], ["b", None, False]], "note").html
    assert '<td class="n" data-value="0.51234" data-label="reward">0.512</td>' in html
    assert '<th scope="col" class="n">reward</th>' in html and '<th scope="col">run</th>' in html
    assert ">yes<" in html and ">-<" in html and "note" in html


def test_a_table_with_a_short_row_is_refused() -> None:
    with pytest.raises(ValueError, match="row 0 has 1 cells for 2 columns"):
        table_section("T", ["a", "b"], [["x"]])


def test_text_has_paragraphs() -> None:
    assert text_section("T", "one\ntwo\n\n\n<b>three").html == "<p>one\ntwo</p><p>&lt;b&gt;three</p>"


def test_pictures_are_told_by_their_content_not_their_name(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"\xff\xd8\xff rest")
    (tmp_path / "b.svg").write_text('<?xml version="1.0"?>\n<svg xmlns="x"/>')
    (tmp_path / "c.png").write_text("<script>alert(1)</script>")
    assert 'src="data:image/jpeg;base64,' in image_section("T", tmp_path / "a.png").html
    assert 'src="data:image/svg+xml;base64,' in image_section("T", tmp_path / "b.svg").html
    with pytest.raises(InputError, match="not a PNG"):
        image_section("T", tmp_path / "c.png")
    with pytest.raises(InputError, match="cannot be read"):
        image_section("T", tmp_path / "none.png")


def test_a_data_address_cannot_break_out_of_its_attribute() -> None:
    read = Reader(image_section("T", 'data:image/png;base64,"><script>x</script>').html)
    assert not read.all("script") and len(read.all("img")) == 1
