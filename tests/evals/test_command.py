"""``rnope eval`` as a user types it: several models and suites in one folder, mistakes, interruptions, damaged files."""

import errno
import json
import os
import resource
import shutil
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent / "models"))
sys.path.insert(0, str(Path(__file__).parent / "standard"))
import standard_kit
from fake_server import FakeServer, Reply, completion
from model_kit import write, write_ours

from rnope import cli, save
from rnope.evals.models import transport
from rnope.evals.models.ours import EngineModel
from rnope.evals.store import Store
from rnope.report import draw
from rnope.testing import tiny_model
from rnope.tokenizer import Tokenizer

TEXT = "Fish come in from the sea. Boats go out again! Who sees them? Nobody at the harbour does, says the keeper. "
TOKENIZER = Tokenizer.train([TEXT], vocab_size=280)
TRAINED = 320
SUITES = ("niah", "ruler", "standard", "perplexity")


def made(folder, seed=0):
    model = tiny_model("rnope-swa", seed, vocab_size=280)
    save(model, folder, TOKENIZER, context_tokens=TRAINED)
    return folder


@pytest.fixture(scope="module", autouse=True)
def small_figures():
    """Every command draws its page: as it is, of fewer dots."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(draw, "DPI", 40)
        yield


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    return made(root / "one"), made(root / "two", 1)


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text(TEXT * 60, encoding="utf-8", newline="\r\n")
    return path


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = standard_kit.write_data(tmp_path_factory.mktemp("data"))
    (folder / "PaulGrahamEssays.json").write_text(json.dumps({"text": TEXT * 60}), encoding="utf-8")
    return folder


@pytest.fixture
def rnope(capsys, tmp_path, monkeypatch):
    """Runs ``rnope eval`` in an empty folder: exit code, standard output, standard error."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments):
        code = cli.run(["eval", *(str(each) for each in arguments)])
        out, err = capsys.readouterr()
        return code, out, err

    return call


@pytest.fixture
def niah(rnope, text, models):
    """A needle run: two cells of two samples, some seconds; `asked` has all its options but the models."""

    def call(*more, given=models[:1], lengths="400", out="out"):
        asked = [part for model in given for part in ("--model", model)]
        options = ("--depths", 1, "--samples", 2, "--max-new-tokens", 4, "--haystack", text)
        return rnope("niah", *asked, "--lengths", lengths, "--out", out, *options, *more)

    return call


def refused(result, *words):
    """One message of one line, whatever else was said before it."""
    code, _, err = result
    assert code == 2 and err.count("rnope: ") == 1 and err.splitlines()[-1].startswith("rnope: "), err
    assert "Traceback" not in err and all(word in err.splitlines()[-1] for word in words), err


def kept(out):
    """What must not depend on interruptions: answers and results of all models and suites."""
    files = [*out.glob("*/*/predictions/*"), *out.glob("*/*/results.json"), *out.glob("*/*/run.json")]
    return {str(path.relative_to(out)): path.read_bytes() for path in files}


@contextmanager
def interrupted(answers=10**6):
    """Ctrl-C after so many answers; gives the list of those that came."""
    came, original = [], EngineModel.generate

    def generate(self, *given, **more):
        if len(came) == answers:
            raise KeyboardInterrupt
        came.append(self.facts.name)
        return original(self, *given, **more)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(EngineModel, "generate", generate)
        yield came


# ---- what works


def test_two_models_four_suites_one_page(rnope, niah, models, text, data, tmp_path):
    both = [part for model, name in zip(models, ("a", "b"), strict=True) for part in ("--model", model, "--name", name)]
    assert niah("--name", "a", "--name", "b", given=models)[0] == 0
    tasks = ("--tasks", "niah_single_1,niah_single_1", "--lengths", "2k", "--samples", 1, "--data", data)
    assert rnope("ruler", *both, *tasks, "--out", "out")[0] == 0
    standard = ("--tasks", "arc_easy,winogrande", "--limit", 2, "--data", data)
    assert rnope("standard", *both, *standard, "--out", "out")[0] == 0
    code, out, _ = rnope("perplexity", *both, "--lengths", "1x,64,64", "--samples", 2, "--corpus", text, "--out", "out")
    assert code == 0 and out.splitlines()[:2] == ["out/report.html", "out/report.md"]
    assert all(Path(path).is_file() for path in out.splitlines())
    page = Path("out/report.md").read_text()
    assert all(f"\n## {title}" in page for title in ("Needle", "RULER", "Standard", "Perplexity"))
    for name in ("a", "b"):
        for suite in SUITES:
            assert json.loads(Path("out", name, suite, "results.json").read_text())["cells"], (name, suite)
    lengths = [cell.context_tokens for cell in Store(Path("out/a/perplexity")).cells()]
    assert lengths == [64, TRAINED], "twice the same length is one, and 1x is the trained one"
    # The whole folder elsewhere gives the same page, without any model.
    shutil.copytree("out", "moved")
    before = {path.name: path.read_bytes() for path in Path("out").glob("report.*")}
    for path in [*Path("moved").glob("report.*"), *Path("moved").glob("*/*/results.json")]:
        path.unlink()
    assert rnope("report", "moved")[0] == 0
    assert {path.name: path.read_bytes() for path in Path("moved").glob("report.*")} == before
    assert kept(Path("moved")) == kept(Path("out"))


def test_a_dry_run_asks_and_writes_nothing(niah, tmp_path):
    code, out, _ = niah("--dry-run", lengths="400,1_000")
    assert code == 0 and not any(tmp_path.iterdir())
    rows = {line.split()[0]: line.split()[1:] for line in out.splitlines()[2:6]}
    assert rows["400"][:3] == ["2", "4", "1,600"] and rows["1,000"][:3] == ["2", "4", "4,000"] and len(rows["all"]) == 4
    assert "tokens/s" in out


def test_paths_as_people_write_them(niah, models, monkeypatch):
    """With a slash behind, relative, through a link, by the home folder: one model, of the name that was typed."""
    (models[0].parent / "link").symlink_to(models[0])
    monkeypatch.chdir(models[0].parent)
    monkeypatch.setenv("HOME", str(models[0].parent))
    for given, name in (("one/", "one"), ("./one", "one"), ("link", "link"), ("~/one", "one")):
        assert niah(given=[given], out="paths")[0] == 0
        assert Path("paths", name, "niah", "results.json").exists()
    assert {path.name for path in Path("paths").iterdir() if path.is_dir()} == {"one", "link", "figures"}


def test_lengths_and_samples_may_grow_and_shrink(niah):
    assert niah()[0] == 0
    before = kept(Path("out"))
    assert niah(lengths="380")[0] == 0 and niah("--samples", 3)[0] == 0 and niah("--samples", 1)[0] == 0
    after = kept(Path("out"))
    name = "one/niah/predictions/standard-400-d050.jsonl"
    assert len(after[name].splitlines()) == 1 + 3
    assert after[name].splitlines()[1:3] == before[name].splitlines()[1:3], "the first two were not asked again"
    assert "one/niah/predictions/standard-380-d050.jsonl" in after


def test_a_short_haystack_is_repeated_and_that_is_said(niah, tmp_path):
    (tmp_path / "short.txt").write_text(TEXT, encoding="utf-8")
    assert niah("--haystack", "short.txt")[0] == 0
    (cell,) = [c for c in json.loads(Path("out/one/niah/results.json").read_text())["cells"] if "standard" in c["name"]]
    assert cell["facts"]["haystack_repeats"] > 1
    page = Path("out/report.md").read_text()
    assert f"{cell['facts']['haystack_repeats']:.2f}×" in page and "above 1 they repeat" in page


def test_a_model_without_bos_and_one_beyond_its_positions(niah, tmp_path):
    """Both kinds of reader make the same of them: 900 tokens, where the folder says 64."""
    ours = write_ours(tmp_path / "m")
    write(tmp_path / "learned", "gpt2")
    for folder in (ours, tmp_path / "learned"):
        plain = json.loads((folder / "tokenizer.json").read_text())
        (folder / "tokenizer.json").write_text(json.dumps(plain | {"post_processor": None}))
        config = json.loads((folder / "tokenizer_config.json").read_text())
        (folder / "tokenizer_config.json").write_text(json.dumps(config | {"add_bos_token": False}))
    for given in ("m", "transformers:m"):
        assert niah("--name", given[:2], given=[given], lengths="900")[0] == 0
    a, b = (
        {line.index: line for line in Store(Path("out", name, "niah")).read("standard-900-d050").values()}
        for name in ("m", "tr")
    )
    assert a == b and {line.ended for line in a.values()} <= {"stop", "length"}
    # Learned positions cannot be exceeded: errors, said on the screen and on the page, never scores.
    code, _, err = niah(given=["learned"], lengths="900", out="beyond")
    assert code == 0 and "6 of 6 samples have no answer (errors)" in err
    assert "6 of 6 samples have no answer" in Path("beyond/report.md").read_text()
    cells = json.loads(Path("beyond/learned/niah/results.json").read_text())["cells"]
    assert all(cell["errors"] == 2 and cell["figures"] == [] for cell in cells)


# ---- mistakes


@pytest.mark.parametrize(
    ("lengths", "words"),
    [
        ("10", "cannot hold needle, question"),
        ("8,192", "cannot hold needle, question"),
        ("32k tokens", "is no number of tokens"),
        ("", "names no length"),
        (",", "names no length"),
        ("0x", "cannot hold"),
        ("²x", "is no number of tokens"),
        ("-1", "is no number of tokens"),
        ("999999999m", "is more than 134,217,728"),
        ("999999x", "is more than 134,217,728"),
    ],
)
def test_lengths_that_cannot_be(lengths, words, niah, tmp_path):
    refused(niah(lengths=lengths), "engths", words)
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "does not exist"),
        (b"", "holds no text"),
        (b" \r\n", "holds no text"),
        (b"\x00\xff\xfe", "cannot be read"),
    ],
)
def test_haystacks_that_are_none(content, words, niah, tmp_path):
    if content is not None:
        (tmp_path / "hay.txt").write_bytes(content)
    refused(niah("--haystack", "hay.txt"), "haystack = 'hay.txt'", words)
    assert not Path("out").exists()


@pytest.mark.parametrize("name", ["a/b", "..", ".hidden", "", " a", "figures", "a\nb", "x" * 101])
def test_names_that_are_no_folders(name, niah, tmp_path):
    refused(niah("--name", name), "--name", "is no name for a folder")
    assert not any(tmp_path.iterdir())


def test_models_that_are_none(niah, models, tmp_path):
    refused(niah(given=["nowhere"]), "there is no such folder")
    refused(niah(given=[models[0], "nowhere"]), "there is no such folder")
    refused(niah(given=[models[0], models[0]]), "--name", "all different")
    refused(niah("--name", "a", given=models), "--name", "one for each of 2")
    refused(niah("--chat"), "no chat template")
    for name, part in (("weights", "*.safetensors"), ("tokenizer", "tokenizer*"), ("config", "config.json")):
        folder = shutil.copytree(models[0], tmp_path / name)
        for path in folder.glob(part):
            path.unlink()
        refused(niah(given=[folder]), name)
    assert not Path("out").exists()


def test_a_place_that_is_a_file(niah, tmp_path):
    (tmp_path / "out").write_text("mine")
    for out in ("out", "out/below"):
        refused(niah(out=out), "Choose another folder")
    assert Path("out").read_text() == "mine"


def test_a_place_of_other_settings_or_models(niah, models):
    assert niah("--name", "a")[0] == 0
    before = kept(Path("out"))
    refused(niah("--name", "a", "--seed", 7), "settings.seed = 7", "Choose another --out")
    refused(niah("--name", "a", "--max-new-tokens", 5), "max_new_tokens = 5", "Choose another --out")
    refused(niah("--name", "a", "--batch", 2), "batch = 2", "Choose another --out")
    refused(niah("--name", "a", given=models[1:]), "model.sha256", "--name the model otherwise")
    assert kept(Path("out")) == before


def test_reports_of_nothing(rnope, tmp_path):
    (tmp_path / "empty").mkdir()
    for folder in ("empty", "missing"):
        refused(rnope("report", folder), "holds no evaluation")
    assert [path.name for path in tmp_path.iterdir()] == ["empty"]


# ---- interruptions


def test_stopped_at_either_of_two_models_it_goes_on(niah, models):
    with interrupted() as came:
        assert niah(given=models, out="whole")[0] == 0
    assert came == ["one"] * 6 + ["two"] * 6
    for answers in (0, 1, 6, 9):
        out = f"after-{answers}"
        with interrupted(answers):
            code, _, err = niah(given=models, out=out)
        assert code == 130 and "run the same command again" in err and "Traceback" not in err
        with interrupted() as left:
            assert niah(given=models, out=out)[0] == 0
        assert left == came[answers:], f"nothing is asked twice after {answers}"
        assert kept(Path(out)) == kept(Path("whole")), answers


def test_a_full_disk_is_said_and_made_room_for(niah):
    """Files may have no more than `room` bytes: lines are cut in the midst, as on a disk that fills up."""
    assert niah("--samples", 6, out="whole")[0] == 0
    for room in (1200, 2600, 4500):
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (room, hard))
        try:
            result = niah("--samples", 6, out=f"of-{room}")
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        refused(result, os.strerror(errno.EFBIG), "Make room")
        assert niah("--samples", 6, out=f"of-{room}")[0] == 0
        assert kept(Path(f"of-{room}")) == kept(Path("whole")), room


# ---- damaged folders


def test_what_is_lost_is_asked_again_or_made_again(niah):
    assert niah()[0] == 0
    before, folder = kept(Path("out")), Path("out/one/niah")
    (folder / "predictions/standard-400-d050.jsonl").unlink()
    (folder / "results.json").write_text('{"version": 1, "ce')
    log = (folder / "log.jsonl").read_bytes()
    (folder / "log.jsonl").write_bytes(log[: len(log) // 2])
    assert niah()[0] == 0 and kept(Path("out")) == before
    events = [line["event"] for line in Store(folder).read_log()]
    assert events.count("start") == events.count("end") + 1 == 2, "the new lines do not hang on the broken one"


def test_a_damaged_log_or_result_hinders_no_report(niah, rnope):
    assert niah()[0] == 0
    before = kept(Path("out"))
    Path("out/one/niah/results.json").write_text("half")
    with Path("out/one/niah/log.jsonl").open("ab") as file:
        file.write(b'7\n\xff\xfe{"event": "ans')
    assert rnope("report", "out")[0] == 0 and kept(Path("out")) == before


@pytest.mark.parametrize("content", ['{"version": 1, "sui', None, "{}"])
def test_a_folder_that_does_not_say_what_it_holds_is_refused(content, niah, rnope):
    """Else answers of one model could pass for those of another."""
    assert niah()[0] == 0
    path = Path("out/one/niah/run.json")
    path.unlink() if content is None else path.write_text(content)
    before = kept(Path("out"))
    refused(niah(), "one/niah", "another")
    refused(rnope("report", "out"))
    assert kept(Path("out")) == before


def test_a_report_while_an_evaluation_is_at_work_leaves_its_files_alone(niah, rnope):
    assert niah()[0] == 0
    store = Store(Path("out/one/niah"))
    store.results_path.unlink()
    with store.locked():
        with (store.folder / "predictions/standard-400-d050.jsonl").open("ab") as file:
            file.write(b'{"answer": "half of a li')
        assert rnope("report", "out")[0] == 0
        assert not store.results_path.exists(), "the one at work writes it"
        refused(niah(), "another process")
    assert rnope("report", "out")[0] == 0 and store.results_path.exists()


# ---- servers


def test_a_server_that_fails_at_times(rnope, niah, models, text, monkeypatch):
    """429 without end, a cut prompt and a reply that never comes are errors of these samples; the next run asks them."""
    key = "sk-not-to-be-kept"
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setenv("OPENAI_API_KEY", key)
    monkeypatch.setattr(transport, "FIRST_WAIT", 0.001)
    ill = [True]

    def behave(number, path, body):
        size = len(body["prompt"])
        if ill[0] and size in (400, 396):  # of needles as of windows
            return Reply(
                {"error": {"message": f"too many requests of {key}"}}, status=429, headers={"Retry-After": "0"}
            )
        if ill[0] and size in range(300, 399):
            return completion(body, read=100)
        logs = [None, *[-1.0] * size]
        table = {"token_logprobs": logs, "top_logprobs": [None, *[{"a": -1.0}] * size]}
        return completion(body, **({"logprobs": table} if body.get("echo") else {}))

    server = FakeServer(behave)
    try:
        given = [f"{server.url}#m"]
        options = ("--tokenizer", models[0], "--timeout", 5)
        code, _, err = niah(*options, "--batch", 3, given=given)
        assert code == 0 and "samples have no answer (errors): the same command asks them again" in err
        windows = (
            "perplexity",
            "--model",
            given[0],
            *options,
            "--lengths",
            "200,400",
            "--samples",
            2,
            "--corpus",
            text,
        )
        code, _, err = rnope(*windows, "--out", "out")
        assert code == 0 and "2 of 4 samples have no answer" in err
        page = Path("out/report.md").read_text()
        assert "samples have no answer (errors), and are in no figure" in page and "2 of 4 samples" in page
        for path in Path("out").glob("m/*/predictions/*"):
            for line in map(json.loads, path.read_text().splitlines()[1:]):
                assert (line["ended"] == "error") == (line["error"] is not None)
        ill[0] = False
        assert niah(*options, "--batch", 1, given=given)[0] == 0, "fewer at once, to be kind to it"
        code, _, err = rnope(*windows, "--out", "out")
        assert code == 0 and "have no answer" not in err + Path("out/report.md").read_text()
        assert key.encode() not in b"".join(path.read_bytes() for path in Path("out").rglob("*") if path.is_file())
    finally:
        server.close()
