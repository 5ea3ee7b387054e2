"""Configurations: what is told of them and where; xl's verdict is compared in tests/xen."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

import xenpm
from xenpm import ConfigError, cli, config

from .mutations import CORPUS

try:
    import xenpm._ext.xenlight
except ImportError:
    pytest.skip("the extension modules are not built", allow_module_level=True)

HEAD = 'name = "web"\nkernel = "/k"\n'
WEB = "00112233-4455-6677-8899-aabbccddeeff"


@pytest.fixture(autouse=True)
def settings(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A place for xl's own settings; there are none."""
    path = tmp_path_factory.mktemp("xen") / "xl.conf"
    monkeypatch.setattr(config, "XL_CONF", path)
    return path


def refused(text: str, source: str = "web.cfg") -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        config.parse(text, source)
    return caught.value


def pci(*specs: str) -> config.DomainConfig:
    return config.parse(HEAD + "pci = [" + ", ".join(f"'{spec}'" for spec in specs) + "]\n")


# -- what is found


def test_everything() -> None:
    found = config.parse(
        f"""
        name = "net"; type = "pvh"; kernel = "/k"; uuid = "{WEB.upper()}"
        driver_domain = 1
        pci_permissive = 1
        pci = [ "00:10.0", "0001:0a:1f.7,permissive=0,msitranslate=1" ]
        disk = [ "phy:/dev/a,xvda,w", "backend=store,vdev=xvdb,target=/b" ]
        vif = [ "", "bridge=br0,backend=router", "backend=0" ]
        p9 = [ "tag=t,path=/,security_model=none,backend=files" ]
        """,
        "net.cfg",
    )
    permissive = config.PciSpec("0000:00:10.0", permissive=True, rdm_policy="strict")
    other = config.PciSpec("0001:0a:1f.7", msitranslate=True, rdm_policy="strict")
    assert found == config.DomainConfig(
        name="net",
        type=xenpm.DomainType.PVH,
        uuid=UUID(WEB),
        driver_domain=True,
        pci=(permissive, other),
        backends=(
            config.Backend("disk", "xvdb", "store"),
            config.Backend("vif", "1", "router"),
            config.Backend("p9", "", "files"),
        ),
        source="net.cfg",
    )
    assert found.source == "net.cfg"
    assert [(each.line, each.column) for each in found.pci] == [(5, 17), (5, 28)]
    assert json.loads(json.dumps(found.to_dict()))["pci"][1]["address"] == "0001:0a:1f.7"


def test_nothing() -> None:
    found = config.parse(HEAD)
    assert (found.pci, found.backends, found.driver_domain) == ((), (), False)
    assert (found.name, found.type, found.uuid) == ("web", xenpm.DomainType.PV, None)
    assert found.source == "<string>"


def test_all_files_of_the_corpus_have_a_verdict() -> None:
    found = config.read_files(sorted(CORPUS.glob("*.cfg")))
    assert len(found.configs) > 60
    assert len(found.errors) > 60
    for error in found.errors:
        assert str(error).startswith(f"{CORPUS}/{Path(error.source).name}:")
        assert error.what
        if "gives no name" not in error.what and "needs kernel=" not in error.what:
            assert error.line
            assert error.column


# -- what is wrong, and where


@pytest.mark.parametrize(
    ("text", "place", "what"),
    [
        ("a = 1\nb = $HOME\n", (2, 5), "lexical error, at '$HOME'"),
        ("a = 1 1\n", (1, 7), "unexpected NUMBER"),
        ("1 1 = 1\n", (1, 1), "unexpected NUMBER"),
        ("a = [1, 1 1]\n", (1, 11), "unexpected NUMBER"),
        ("a =\nb = 1\n", (1, 4), "unexpected NEWLINE"),
        ("a = 1\nb = # later\nc = 1\n", (2, 5), "unexpected NEWLINE"),
        ("a = 'x\n", (1, 5), "lexical error"),
        ("\u00e4 = 1\n", (1, 1), "lexical error"),
        ("a = '\u00e4\u00f6' \u00fc\n", (1, 10), "lexical error"),
        ("\t a = '\\q'\n", (1, 7), "invalid character after back"),
        ("a = 1\na += [1]\n", (2, 8), "can't add [list]"),
        ("a = [1,\n\n 2\n 3]\n", (4, 2), "unexpected NUMBER"),
        ("import os\n", (1, 8), "unexpected IDENT"),
        ("a = 1\n# the end", (2, 1), "lexical error"),
        ("a = 'x'\r\nb = 'y'\r\n", (1, 8), "as DOS does"),
        ("a = [1\n", (1, 7), "unexpected $end"),
        ("a = ", (1, 5), "unexpected $end"),
        (HEAD + "pci = ['00:10.0',\n\n  '00:11']\n", (5, 3), "'00:11' is not a PCI device"),
        (HEAD + "pci = ['00:10.0']; pci += ['x']\n", (3, 28), "'x' is not a PCI device"),
        (HEAD + "pci = [ [], 'x' ]\npci = [ 'y' ]\n", (4, 9), "'y' is not a PCI device"),
        (HEAD + "vif = ['', 'rate=slow']\n", (3, 12), "vif: invalid rate"),
        (HEAD + "disk = [ '/a' ]\n", (3, 10), "disk: no vdev specified"),
        (HEAD + "disk = [ 'vdev=\n' ]\n".replace("=\n'", "=\\n'"), (3, 10), "a line end behind"),
        (HEAD + "type = 'xen'\n", (3, 8), "type: 'xen' is none of hvm, pv, pvh"),
        (HEAD + "uuid = '12'\n", (3, 8), "uuid: '12' is not a UUID"),
        (HEAD + "vtpm = ['']\n", (3, 9), "vtpm: a vtpm needs backend="),
        (HEAD + "firmware = 'x'\n", (3, 12), "firmware: given beside kernel="),
        ("name = 'a\0'\n", (None, None), "NUL"),
        ("kernel = '/k'\n", (None, None), "gives no name"),
        ("name = 'web'\n", (None, None), "needs kernel="),
        ("x = 1\n" * 11_000, (None, None), "is longer than 65536 bytes"),
    ],
)
def test_place_of_errors(text: str, place: tuple[int | None, int | None], what: str) -> None:
    error = refused(text)
    assert what in error.what
    assert (error.line, error.column) == place
    assert str(error).startswith("web.cfg:" + "".join(f"{part}:" for part in place if part))
    assert str(error).isprintable()


@pytest.mark.parametrize(
    "spec",
    [
        "00:10",
        "00:1g.0",
        "bdf=00:10",
        "0:0:10,x",
        "00: 10",
        "00:0x10",
        "00:10 .0",
    ],
)
def test_what_libxlutil_crashes_on(spec: str) -> None:
    """It reads on at a place that depends on an uninitialised variable."""
    for _ in range(100):
        assert "is not a PCI device" in refused(f"{HEAD}pci = ['{spec}']\n").what


def test_ignored_keys_are_warned_of() -> None:
    found = config.parse(HEAD + "pci = '00:10.0'\ndriver_domain = 'yes'\n", "web.cfg")
    assert found.pci == ()
    assert not found.driver_domain
    assert sorted(found.warnings) == [
        "web.cfg:3: warning: parameter `pci' is a single value but should be a list",
        "web.cfg:4: warning: parameter `driver_domain' is not a valid number",
    ]


def test_text_that_is_not_utf_8(tmp_path: Path) -> None:
    path = tmp_path / "web.cfg"
    path.write_bytes(HEAD.encode() + b'vif = ["backend=caf\xe9"]\n')
    found = config.read(path)
    assert found.backends[0].domain == "caf\udce9"
    assert str(config.PlannedDriverDomain("caf\udce9")).isprintable()


# -- files


def test_read(tmp_path: Path) -> None:
    path = tmp_path / "web.cfg"
    path.write_text(HEAD)
    assert config.read(path) == config.read(str(path)) == config.parse(HEAD)
    assert config.read(path).source == str(path)


@pytest.mark.parametrize(
    ("make", "what"),
    [
        (lambda _path: None, "there is no such file"),
        (lambda path: path.mkdir(), "cannot be read: Is a directory"),
        (os.mkfifo, "is not a file"),
        (lambda path: path.symlink_to(path), "cannot be read: Too many levels"),
        (lambda path: path.write_bytes(b"#" * 70_000), "is larger than 64 KiB"),
        (lambda path: path.write_bytes(bytes(range(256))), ""),
    ],
)
def test_read_what_is_no_configuration(tmp_path: Path, make: Any, what: str) -> None:
    path = tmp_path / "web.cfg"
    make(path)
    with pytest.raises(ConfigError, match=re.escape(f"{path}")) as caught:
        config.read(path)
    assert what in caught.value.what


def test_default_backend(settings: Path) -> None:
    text = HEAD + "vif = ['', 'backend=own', 'backend=']\n"
    assert [each.domain for each in config.parse(text).backends] == ["own"]
    settings.write_text("vif.default.backend = 'net'\n")
    assert [each.domain for each in config.parse(text).backends] == ["net", "own"]
    settings.write_text("vif.default.backend = \n")
    with pytest.raises(ConfigError, match=rf"{settings}.*xl itself cannot read"):
        config.parse(text)


# -- devices


@pytest.mark.parametrize(
    ("one", "two", "same"),
    [
        ("0000:00:10.0", "0000:00:10.0", True),
        ("0000:00:10.0", "0000:00:10.1", False),
        ("0000:00:10.0", "0001:00:10.0", False),
        ("0000:00:10.*", "0000:00:10.1", True),
        ("0000:00:10.1", "0000:00:10.*", True),
        ("0000:00:11.1", "0000:00:10.*", False),
    ],
)
def test_overlaps(one: str, two: str, same: bool) -> None:
    assert config.PciSpec(one).overlaps(config.PciSpec(two)) is same


def test_overlaps_by_name() -> None:
    named = config.PciSpec(None, name="lan")
    assert named.overlaps(config.PciSpec("0000:00:10.0", name="lan")) is True
    assert named.overlaps(config.PciSpec("0000:00:10.0")) is False
    assert str(named) == "name=lan"


def test_device_named_twice() -> None:
    pci("00:10.0", "00:10.1").check()
    twice = pci("00:10.0", "00:11.0", "0000:00:10.0")
    with pytest.raises(ConfigError, match=r"names 0000:00:10.0 twice") as caught:
        twice.check()
    assert (caught.value.line, caught.value.column) == (3, 30)


def test_device_that_is_not_assignable() -> None:
    free = [config.PciSpec("0000:00:10.0"), config.PciSpec("0000:00:12.0", name="lan")]
    pci("00:10.0").check(free)
    pci("00:11.0,seize=1").check(free)
    with pytest.raises(ConfigError, match=r"0000:00:11.0 is not assignable here"):
        pci("00:10.0", "00:11.0").check(free)
    named = replace(pci(), pci=(config.PciSpec(None, name="lan"),))
    named.check(iter(free))
    with pytest.raises(ConfigError, match="name=lan is not assignable"):
        named.check([])


# -- driver domains


def several(**texts: str) -> config.Configurations:
    results: dict[str, config.DomainConfig | ConfigError] = {}
    for name, text in texts.items():
        try:
            results[name] = config.parse(f"name = '{name}'\nkernel = '/k'\n{text}\n", name)
        except ConfigError as error:
            results[name] = error
    return config.Configurations(results)


def test_driver_domains() -> None:
    found = several(
        net="pci = ['00:10.0']",
        store="vif = ['backend=net']",
        web="vif = ['backend=net', 'backend=net']\ndisk = ['backend=store,vdev=xvda,target=/a']",
        marked="driver_domain = 1",
        plain="",
        outside="vif = ['backend=elsewhere']",
    )
    domains = found.driver_domains()
    assert {name: bool(domain) for name, domain in domains.items()} == {
        "net": True,
        "store": True,
        "web": False,
        "marked": True,
        "plain": False,
        "outside": False,
        "elsewhere": True,
    }
    assert str(domains["net"]) == "owns 0000:00:10.0; serves store, web"
    assert str(domains["marked"]) == "says driver_domain = 1"
    assert domains["elsewhere"] == config.PlannedDriverDomain("elsewhere", serves=("outside",))
    assert domains["plain"].to_dict()["known"] is False
    assert not found.driver_domain("never heard of")


def test_a_file_that_cannot_be_read_makes_no_wrong_no() -> None:
    found = several(net="pci = ['00:10.0']", broken="vif = [", plain="")
    assert [error.source for error in found.errors] == ["broken"]
    assert found.driver_domain("net")  # evidence is evidence
    for name in ("plain", "broken", "never heard of"):
        domain = found.driver_domain(name)
        assert domain.known is None
        assert domain.to_dict()["known"] is None
        with pytest.raises(ConfigError, match=f"{name} will be a driver domain is unknown: broken"):
            bool(domain)


def test_a_backend_by_number_may_be_any_domain() -> None:
    found = several(net="pci = ['00:10.0']", web="vif = ['backend=7']", plain="")
    assert found.configs[1].backends == (config.Backend("vif", "0", 7),)
    assert found.driver_domain("net")
    assert found.driver_domain("plain").unreadable == ("web",)
    assert set(found.driver_domains()) == {"net", "web", "plain"}


def test_directory(tmp_path: Path) -> None:
    files = {
        "net.cfg": "name = 'net'\nkernel = '/k'\npci = ['00:10.0']\n",
        "web": "name = 'web'\nkernel = '/k'\nvif = ['backend=net']\n",
        "broken.cfg": "name = \n",
        "xl.conf": "settings of xl",
        "web.cfg~": "an editor's",
        ".hidden": "version control's",
        "README": "Read me.",
        "xend-config.sxp": "(xend)",
    }
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    (tmp_path / "scripts").mkdir()
    (tmp_path / "auto").symlink_to("scripts")
    (tmp_path / "link").symlink_to("web")
    (tmp_path / "dangling").symlink_to("nothing")
    found = config.read_directory(tmp_path)
    assert [Path(source).name for source in found.results] == [
        "broken.cfg",
        "dangling",
        "link",
        "net.cfg",
        "web",
    ]
    assert [Path(error.source).name for error in found.errors] == ["broken.cfg", "dangling"]
    assert bool(found.driver_domain("net"))
    assert found.driver_domain("web").known is None
    with pytest.raises(ConfigError, match="cannot be read: No such file"):
        config.read_directory(tmp_path / "nothing")
    with pytest.raises(ConfigError, match="cannot be read: Not a directory"):
        config.read_directory(tmp_path / "web")


# -- libxl's JSON

LIKE_LIBXL: dict[str, Any] = {
    "c_info": {"type": "hvm", "name": "web", "uuid": WEB, "driver_domain": "False"},
    "pcidevs": [
        {"func": 1, "dev": 16, "bus": 2, "vdevfn": 40, "vfunc_mask": 1, "seize": True},
        {"dev": 17, "vfunc_mask": 4294967295, "rdm_policy": "invalid"},
        {"name": "lan"},
    ],
    "disks": [{"vdev": "xvda"}, {"vdev": "xvdb", "backend_domid": 4, "backend_domname": "store"}],
    "nics": [{"devid": 2, "backend_domid": 3}, {"devid": 3, "backend_domname": "Domain-0"}],
}


def test_number_without_end_in_json() -> None:
    with pytest.raises(ConfigError, match="is not"):
        config.from_json('{"c_info": ' + "1" * 10_000 + "}", "web.json")


@pytest.mark.parametrize("number", [1_000_000, 1_000_005, 2**32 + 5])
def test_large_number_of_a_backend_is_no_small_one(number: int) -> None:
    found = config.parse(f'name = "a"\nkernel = "/k"\nvif = ["backend={number}"]\n')
    assert found.backends == (config.Backend("vif", "0", number),)


def test_from_json() -> None:
    found = config.from_json(json.dumps(LIKE_LIBXL), "web.json")
    assert [str(device) for device in found.pci] == ["0000:02:10.1", "0000:00:11.*", "name=lan"]
    assert found.pci[0] == config.PciSpec("0000:02:10.1", vdevfn=40, seize=True)
    assert found.pci[1].rdm_policy is None
    assert found.backends == (
        config.Backend("disk", "xvdb", "store"),
        config.Backend("vif", "2", 3),
    )
    assert (found.name, found.type, found.uuid) == ("web", xenpm.DomainType.HVM, UUID(WEB))
    assert found.source == "web.json"


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("", (1, 1)),
        ("{\n 'a'", (2, 2)),
        (json.dumps(LIKE_LIBXL)[:-1], (1, None)),
        ("{} {}", (1, 4)),
    ],
)
def test_broken_json(text: str, place: tuple[int, int | None]) -> None:
    with pytest.raises(ConfigError, match=r"web.json:.*is not JSON") as caught:
        config.from_json(text, "web.json")
    assert caught.value.line == place[0]
    assert caught.value.column == place[1] or place[1] is None


def at(path: str, value: Any) -> str:
    """The JSON from above with one value replaced; None takes it away."""
    values = json.loads(json.dumps(LIKE_LIBXL))
    *way, last = (int(step) if step.isdigit() else step for step in path.split("."))
    place = values
    for step in way:
        place = place[step]
    if value is None:
        del place[last]
    else:
        place[last] = value
    return json.dumps(values)


@pytest.mark.parametrize(
    "text",
    [
        "[]",
        "null",
        "5",
        "{}",
        "[" * 100_000,
        at("c_info", None),
        at("c_info", []),
        at("c_info.name", None),
        at("c_info.name", 5),
        at("c_info.type", "vm"),
        at("c_info.type", None),
        at("c_info.uuid", "1234"),
        at("pcidevs", {}),
        at("pcidevs.0", "00:10.0"),
        at("pcidevs.0.dev", "16"),
        at("pcidevs.0.dev", True),
        at("pcidevs.0.dev", -1),
        at("pcidevs.0.dev", 256),
        at("pcidevs.0.seize", 1),
        at("pcidevs.0.name", 1),
        at("disks", "xvda"),
        at("disks.0", []),
        at("disks.0.vdev", 51712),
        at("disks.1.backend_domid", "4"),
        at("nics.0.devid", []),
        at("nics.0.backend_domname", ["net"]),
    ],
)
def test_json_that_libxl_does_not_write(text: str) -> None:
    with pytest.raises(ConfigError, match=r"^web.json: is not .*JSON"):
        config.from_json(text, "web.json")


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: (
        st.lists(inner) | st.dictionaries(st.sampled_from(["dev", "name", "vdev"]), inner)
    ),
    max_leaves=5,
)


@given(
    st.sampled_from(["c_info", "c_info.type", "c_info.uuid", "pcidevs", "pcidevs.0", "nics.0"]),
    json_values,
)
def test_any_json(path: str, value: Any) -> None:
    """What cannot be understood is an error, and never a domain without devices."""
    try:
        found = config.from_json(at(path, value))
    except ConfigError:
        return
    assert isinstance(found, config.DomainConfig)


# -- random input


def test_random_input(tmp_path: Path) -> None:
    """No crash, no hang, and no error of another kind."""
    last = tmp_path / "input"
    done = subprocess.run(
        [
            sys.executable,
            "-X",
            "faulthandler",
            "-m",
            "tests.unit.fuzz_config",
            "1",
            "1000",
            str(last),
        ],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, f"{done.stderr}\nat {last.read_text()}"
    assert "1000 rounds" in done.stdout


# -- the command line


def run(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, str, str]:
    code = cli.main(["config", *map(str, words)])
    output, complaints = capsys.readouterr()
    return code, output, complaints


@pytest.fixture
def etc(tmp_path: Path) -> Path:
    (tmp_path / "net.cfg").write_text("name = 'net'\nkernel = '/k'\npci = ['00:10.0']\n")
    disk = "backend=store,vdev=xvda,target=/a"
    (tmp_path / "web.cfg").write_text(
        f"name = 'web'\nkernel = '/k'\nvif = ['backend=net']\ndisk = ['{disk}']\n"
    )
    return tmp_path


def test_command_line(etc: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, output, complaints = run(capsys, etc)
    assert (code, complaints) == (0, "")
    rows = [re.split(" {2,}", line) for line in output.splitlines()]
    assert rows == [
        ["NAME", "TYPE", "DRIVER DOMAIN", "WHY", "SERVED BY", "FILE"],
        ["net", "pv", "yes", "owns 0000:00:10.0; serves web", "-", str(etc / "net.cfg")],
        ["web", "pv", "no", "-", "store (disk xvda), net (vif 0)", str(etc / "web.cfg")],
        ["store", "-", "yes", "serves web", "-", "-"],
    ]
    assert run(capsys, etc / "net.cfg", etc / "web.cfg")[1] == output


def test_command_line_with_wrong_files(etc: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (etc / "broken.cfg").write_text("name = \n")
    (etc / "twice.cfg").write_text("name = 'twice'\nkernel = '/k'\npci = ['1:0.0', '1:0.0']\n")
    (etc / "odd.cfg").write_text("name = 'odd'\nkernel = '/k'\npci = '1:0.0'\n")
    code, output, complaints = run(capsys, etc)
    assert code == 1
    syntax = "syntax error, unexpected NEWLINE, expecting STRING or NUMBER or '['"
    assert sorted(complaints.splitlines()) == [
        f"xenpm: {etc}/broken.cfg:1:8: {syntax}; xl.cfg(5) has the syntax",
        f"xenpm: {etc}/odd.cfg:3: warning: parameter `pci' is a single value but should be a list",
        f"xenpm: {etc}/twice.cfg:3:17: pci: names 0000:01:00.0 twice (0000:01:00.0 is before it)",
    ]
    answers = {line.split()[0]: line.split()[2] for line in output.splitlines()[1:]}
    assert answers == {
        "net": "yes",
        "odd": "unknown",
        "twice": "yes",
        "web": "unknown",
        "store": "yes",
    }
    assert f"{etc}/broken.cfg may name it" in output


def test_command_line_as_json(etc: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (etc / "broken.cfg").write_text("name = \n")
    code, output, _ = run(capsys, "--json", etc)
    assert code == 1
    answer = json.loads(output)
    broken, net, web = answer["files"]
    assert (broken["ok"], broken["error"], broken["line"]) == (False, "ConfigError", 1)
    assert broken["message"].startswith("syntax error")
    assert net["ok"]
    assert net["pci"][0]["address"] == "0000:00:10.0"
    assert web["backends"][1] == {"kind": "vif", "device": "0", "domain": "net"}
    known = {domain["name"]: domain["known"] for domain in answer["domains"]}
    assert known == {"net": True, "web": None, "store": True}


def test_command_line_asks_the_host(
    etc: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(config, "assignable", lambda: [config.PciSpec("0000:00:10.0")])
    assert run(capsys, "--assignable", etc)[0] == 0
    monkeypatch.setattr(config, "assignable", list)
    code, _, complaints = run(capsys, "--assignable", etc)
    assert code == 1
    assert f"{etc}/net.cfg:3:8: pci: 0000:00:10.0 is not assignable here" in complaints


def test_command_line_with_paths_that_cannot_be(capsys: pytest.CaptureFixture[str]) -> None:
    code, _, complaints = run(capsys, "a" * 300)
    assert code == 1
    assert complaints.endswith("cannot be read: File name too long\n")
    with pytest.raises(SystemExit) as caught:
        run(capsys, "")
    assert caught.value.code == 2


def test_command_line_without_such_files(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, output, complaints = run(capsys, tmp_path / "nothing")
    assert code == 1
    assert output.splitlines()[1:] == []
    assert complaints == f"xenpm: {tmp_path}/nothing: there is no such file\n"
