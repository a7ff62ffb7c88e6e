import pytest

from tool_actors.errors import IrEnvError
from tool_actors.fetch import FetchError, fetch
from tool_actors.manifest import FOLDER, Checkpoint, read_manifest
from tool_actors.packages import is_package, parse
from tool_actors.tasks import TASKS
from tool_actors.toolboxes import load_toolbox

CLASSICAL = {tool.spec.name: tool.spec.task for tool in load_toolbox("classical")}
MANIFESTS = {name: read_manifest(FOLDER / f"{name}.yaml") for name in ("opera", "agenticir")}


def checkpoints(manifest: str) -> list[Checkpoint]:
    return [entry for entry in MANIFESTS[manifest] if isinstance(entry, Checkpoint)]


def supported(entry: Checkpoint) -> bool:
    return not entry.note.startswith("unsupported")


@pytest.mark.parametrize(("manifest", "networks", "functions"), [("opera", 16, 2), ("agenticir", 30, 3)])
def test_the_published_numbers_of_tools(manifest, networks, functions):
    entries = MANIFESTS[manifest]
    assert len(checkpoints(manifest)) == networks and len(entries) == networks + functions
    names = [entry if isinstance(entry, str) else entry.name for entry in entries]
    assert len(set(names)) == len(names)
    assert {entry for entry in entries if isinstance(entry, str)} <= CLASSICAL.keys()


@pytest.mark.parametrize("manifest", MANIFESTS)
def test_every_task_has_a_tool_that_can_be_chosen(manifest):
    tasks = {entry.task for entry in checkpoints(manifest) if supported(entry)}
    tasks |= {CLASSICAL[entry] for entry in MANIFESTS[manifest] if isinstance(entry, str)}
    assert tasks == set(TASKS)


@pytest.mark.parametrize("entry", [entry for manifest in MANIFESTS for entry in checkpoints(manifest)], ids=lambda entry: entry.name)
def test_checkpoints(entry, tmp_path):
    assert len(entry.name.split(".")) == 2 and entry.architecture and entry.note
    if is_package(entry.url):
        assert parse(entry.url).version in entry.file and entry.sha256
    else:
        assert entry.url.startswith("https://") or not entry.url
        assert entry.url.endswith(entry.file.split("/")[-1]) or not entry.url
    assert entry.sha256 is None or (len(entry.sha256) == 64 and int(entry.sha256, 16))
    if supported(entry) and not entry.url:
        assert "Download" in entry.note and "https://" in entry.note
    if entry.architecture in ("Restormer", "MPRNet"):
        assert "spandrel-extra-arches" in entry.note
    if not entry.url:
        with pytest.raises(FetchError, match=entry.file):
            fetch(entry, tmp_path)


def test_one_name_is_one_tool_and_one_file_is_one_download():
    entries = [entry for manifest in MANIFESTS for entry in checkpoints(manifest)]
    assert len({entry.name: entry for entry in entries}) == len(set(entries))
    for facts in ("url", "size", "sha256"):
        assert len({(entry.file, getattr(entry, facts)) for entry in entries}) == len({entry.file for entry in entries}), facts


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("name: a.b", "YAML list"),
        ("[]", "YAML list"),
        ("- [unclosed", "not a readable toolbox file"),
        ("- nlm.light\n- {name: a.b, task: denoise}", r"entry 2.*name, task and file.*a\.b"),
        ("- nlm.light\n- 7", "entry 2.*7"),
        ("- {name: a.b, task: denoise, file: w.pth, sha: 1}", r"entry 1 \(a\.b\).*\['sha'\].*sha256"),
        ("- {name: a.b, task: denoising, file: w.pth}", r"entry 1 \(a\.b\).*denoising.*did you mean 'denoise'"),
    ],
)
def test_broken_files_are_named(text, complaint, tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(IrEnvError, match=rf"(?s)mine\.yaml.*{complaint}"):
        read_manifest(path)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(IrEnvError, match=r"none\.yaml"):
        read_manifest(tmp_path / "none.yaml")
