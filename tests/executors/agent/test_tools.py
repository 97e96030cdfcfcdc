"""What single tools do, and what they refuse."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest

from executors.agent.item import keep_files_alone, make_empty
from executors.agent.tools import search, web
from executors.agent.tools.build import build_tools
from executors.agent.tools.calculator import calculator
from executors.agent.tools.code import bash, python_repl, with_last_value
from executors.agent.tools.fault import ToolFault
from executors.agent.tools.files import file_browser, file_edit
from executors.agent.tools.room import Room
from executors.agent.trace import Outcome, Trace
from executors.base import ExecutorError
from mloc_dagster.spec.agent import TOOLS, Tool
from tests.executors.agent.conftest import MakeJob, Serve, items_of, tools_in
from tests.executors.agent.scripted import call, last, say, turns


@pytest.fixture
def room(tmp_path: Path) -> Room:
    folder = tmp_path / "room"
    folder.mkdir()
    return Room(folder, time.monotonic() + 60)


@pytest.mark.parametrize(
    ("expression", "value"),
    [
        ("(2 + 3) * 4 =", "20"),
        ("2^10", "1024"),
        ("7 // 2 + 7 % 2", "4"),
        ("-sqrt(16)", "-4.0"),
        ("12 × 3 ÷ 4", "9.0"),
        ("round(10 / 3, 2)", "3.33"),
        ("factorial(5)", "120"),
        ("max(1, pi)", "3.141592653589793"),
    ],
)
def test_calculator(expression: str, value: str) -> None:
    assert calculator(expression) == value


@pytest.mark.parametrize(
    "expression",
    [
        "__import__('os').system('true')",
        "().__class__",
        "x",
        "1 +",
        "9 ** 9 ** 9",
        "factorial(10 ** 9)",
        "round(5, -1000000000)",
        "'a' * 9",
        "1 if 1 else 2",
        "(-8) ** 0.5",
        "True",
        "1" * 2000,
        "[1][0]",
        "(lambda: 1)()",
    ],
)
def test_the_calculator_computes_nothing_else(expression: str) -> None:
    with pytest.raises(ToolFault):
        calculator(expression)


def test_python_shows_output_the_last_value_and_faults(room: Room) -> None:
    run = python_repl(room, 20)
    assert run("x = 20\nprint('a')\nx + 1") == "a\n21"
    assert run("None") == "[no output]"
    assert run("print(1)") == "1"
    assert "NameError: name 'y' is not defined" in run("y") and "[exit code 1]" in run("y")
    assert "SyntaxError" in run("1 +")
    assert with_last_value("a = 1; a") != "a = 1; a"


def test_commands_are_contained(room: Room, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TOKEN_OF_MINE", "hunter2")
    (tmp_path / "outside").write_text("x", "utf-8")
    run = bash(room, 20)
    assert run("echo $TOKEN_OF_MINE; pwd") == f"\n{room.folder}".lstrip("\n") or "hunter2" not in run("env")
    assert "No such file" in run(f"cat {tmp_path}/outside")
    assert "[exit code 3]" in run("exit 3")
    assert "Network is unreachable" in run("exec 3<>/dev/tcp/1.1.1.1/80")


def test_files_are_written_shown_and_changed(room: Room) -> None:
    browse, edit = file_browser(room), file_edit(room)
    assert browse() == "The folder is empty."
    assert edit("notes/a.txt", "one\ntwo\nthree") == "notes/a.txt is written: 3 lines."
    assert browse() == "notes/" and browse("/notes") == "a.txt (13 bytes)"
    assert browse("notes/a.txt", 2) == "two\nthree"
    edit("notes/a.txt", "2", "two")
    assert (room.folder / "notes" / "a.txt").read_text("utf-8") == "one\n2\nthree"
    with pytest.raises(ToolFault, match="holds the old text 0 times"):
        edit("notes/a.txt", "x", "nowhere")
    edit("long", "line\n" * 500)
    assert browse("long").endswith("[100 more lines; go on with first_line 401]")


@pytest.mark.parametrize("path", ["../x", "a/../../x", "link", "link/x", "folder/x", "pipe", "", "."])
def test_nothing_leads_out_of_the_folder(path: str, room: Room, tmp_path: Path) -> None:
    outside = tmp_path / "x"
    outside.write_text("secret", "utf-8")
    os.symlink(outside, room.folder / "link")
    os.symlink(tmp_path, room.folder / "folder")
    os.mkfifo(room.folder / "pipe")
    with pytest.raises(ToolFault):
        file_edit(room)(path, "changed")
    if path not in ("", "."):
        with pytest.raises(ToolFault):
            file_browser(room)(path)
    assert outside.read_text("utf-8") == "secret"
    assert "link (a link, not followed)" in file_browser(room)()


def test_every_named_tool_can_be_built(room: Room) -> None:
    built = build_tools([Tool(name=name) for name in TOOLS], room, lambda query: [])
    assert [tool.name for tool in built] == list(TOOLS)
    for tool in built:
        schema = tool.tool_call_schema.model_json_schema()
        assert tool.description and all("description" in value for value in schema["properties"].values()), tool.name
    with pytest.raises(ExecutorError, match="'nothing', which is not a tool here"):
        build_tools([Tool(name="nothing")], room, None)


class Pages(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        parts = urlsplit(self.path)
        query = parse_qs(parts.query)
        if parts.path == "/to":
            self.send_response(302)
            self.send_header("Location", query["url"][0])
            self.end_headers()
            return
        found = {"results": [{"title": query.get("q"), "url": "u", "content": "c"}]}
        pages = {"query": {"pages": {"1": {"index": 2, "title": "B", "extract": "b"}, "2": {"index": 1, "title": "A"}}}}
        html = "<html><head><title>t</title></head><body><p>Grüße</p></body></html>"
        bodies = {
            "/page": ("text/html; charset=utf-8", html),
            "/long": ("text/plain", "x" * 30_000),
            "/search": ("application/json", json.dumps(found)),
            "/wiki": ("application/json", json.dumps(pages)),
            "/arxiv": ("application/atom+xml", ATOM),
        }
        kind, text = bodies.get(parts.path, ("", ""))
        self.send_response(200 if kind else 404)
        self.send_header("Content-Type", kind or "text/plain")
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, format: str, *args: object) -> None:
        return


ATOM = """<feed xmlns="http://www.w3.org/2005/Atom"><entry><title>On
 Tools</title><author><name>A. B.</name></author><published>2024-01-02T00:00:00Z</published>
<id>http://arxiv.org/abs/1</id><summary>Short.</summary></entry></feed>"""


@pytest.fixture
def site() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Pages)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()


def test_a_page_is_opened_where_it_is_allowed(site: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ToolFault, match=r"127\.0\.0\.1, an address of this machine"):
        web.web_fetch(f"http://{site}/page")
    monkeypatch.setenv(web.ALLOWED, site)
    assert "Grüße" in web.web_fetch(f"http://{site}/page") and "<p>" not in web.web_fetch(f"http://{site}/page")
    assert web.web_fetch(f"http://{site}/to?url=http://{site}/page").startswith(f"http://{site}/page\n")
    assert web.web_fetch(f"http://{site}/long").endswith("[18000 more characters; go on with first_character 12000]")
    with pytest.raises(ToolFault, match="answered 404"):
        web.web_fetch(f"http://{site}/none")


@pytest.mark.parametrize(
    "target",
    [
        "http://[::1]/",
        "http://169.254.169.254/latest",
        "file:///etc/passwd",
        "ftp://127.0.0.1/x",
        "http://10.0.0.1/",
        "http://[::ffff:127.0.0.1]:{port}/page",
    ],
)
def test_a_redirect_leads_to_no_private_place(target: str, site: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(web.ALLOWED, site)
    with pytest.raises(ToolFault, match=r"only public ones|no web address|not allowed"):
        web.web_fetch(f"http://{site}/to?url={target.format(port=site.rpartition(':')[2])}")


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1",
        "0.0.0.0",
        "10.1.2.3",
        "192.168.0.1",
        "172.16.0.1",
        "169.254.1.1",
        "100.64.0.1",
        "224.0.0.1",
        "::1",
        "fe80::1",
        "fd00::1",
        "::ffff:10.0.0.1",
        "64:ff9b::a00:1",
        "2002:a00:1::",
    ],
)
def test_private_addresses_are_refused(address: str) -> None:
    assert web.refusal("host", address, 80) is not None
    assert web.refusal("host", "93.184.216.34", 80) is None
    assert web.refusal("host", "2606:2800:220:1::1", 80) is None


def test_searches_read_what_the_servers_give(site: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(web.ALLOWED, site)
    for variable, path in (
        (search.SEARCH_URL, "search"),
        ("MLOC_AGENT_WIKIPEDIA_URL", "wiki"),
        ("MLOC_AGENT_ARXIV_URL", "arxiv"),
    ):
        monkeypatch.setenv(variable, f"http://{site}/{path}")
    assert search.web_search("two words") == "['two words']\nu\nc"
    assert search.wikipedia("x").startswith("A\n") and search.wikipedia("x").endswith("B\n\nb")
    assert search.arxiv("tools") == "On Tools\nA. B. (2024-01-02)\nhttp://arxiv.org/abs/1\nShort."


@pytest.mark.parametrize("tool", [name for name, need in TOOLS.items() if need == "network"])
def test_network_tools_are_off(tool: str, serve: Serve, agent_job: MakeJob, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(web.NETWORK, raising=False)
    with pytest.raises(ExecutorError, match=f"The agent uses {tool}, which reach the network") as raised:
        items_of(agent_job(serve(lambda body: say("no")), {"tools": [tool]}))
    assert "MLOC_AGENT_NETWORK=1" in raised.value.hint


def test_network_tools_where_the_deployment_allows_them(
    site: str, serve: Serve, agent_job: MakeJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(web.NETWORK, "1")
    server = serve(lambda body: say("read") if turns(body) else call("web_fetch", {"url": f"http://{site}/page"}))
    (refused,) = tools_in(items_of(agent_job(server, {"tools": ["web_fetch"]}))[0])
    assert refused["is_error"] and "only public ones may be opened" in refused["observation"]
    monkeypatch.setenv(web.ALLOWED, site)
    (opened,) = tools_in(items_of(agent_job(server, {"tools": ["web_fetch"]}, name="again"))[0])
    assert not opened["is_error"] and "Grüße" in opened["observation"]


def test_no_sandbox_means_no_code(serve: Serve, agent_job: MakeJob, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLOC_SANDBOX", "off")
    with pytest.raises(ExecutorError, match="no sandbox"):
        items_of(agent_job(serve(lambda body: say("x")), {"tools": ["bash"]}))


def test_tools_of_packages(serve: Serve, agent_job: MakeJob, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "site" / "weather-1.dist-info"
    package.mkdir(parents=True)
    (package / "METADATA").write_text("Metadata-Version: 2.1\nName: weather\nVersion: 1\n", "utf-8")
    (package / "entry_points.txt").write_text("[mloc.tools]\nweather = weather_of_tests:weather\n", "utf-8")
    source = "import time\ndef weather(city: str) -> str:\n    'Weather of a city.'\n    return f'{city}: rain'\n"
    (tmp_path / "site" / "weather_of_tests.py").write_text(source, "utf-8")
    monkeypatch.syspath_prepend(str(tmp_path / "site"))

    server = serve(lambda body: say(last(body)["content"]) if turns(body) else call("weather", {"city": "Ulm"}))
    (item,) = items_of(agent_job(server, {"tools": ["weather"]}))
    assert item["output"] == "Ulm: rain"
    assert server.requests[0]["tools"][0]["function"]["description"] == "Weather of a city."


def test_a_part_of_a_file_is_replaced_in_all_of_it_or_not_at_all(room: Room) -> None:
    long = "x" * 500_000 + "END"
    (room.folder / "long.txt").write_text(long)
    file_edit(room)("long.txt", "done", old="END")
    assert (room.folder / "long.txt").read_text() == long.replace("END", "done")
    (room.folder / "latin.txt").write_bytes(b"caf\xe9 old")
    with pytest.raises(ToolFault, match="no UTF-8"):
        file_edit(room)("latin.txt", "new", old="old")
    assert (room.folder / "latin.txt").read_bytes() == b"caf\xe9 old"


def test_folders_that_code_has_nested_a_thousand_deep_are_removed(tmp_path: Path) -> None:
    folder = tmp_path / "item"
    folder.mkdir()
    nest = "import os\nfor _ in range(1500): os.mkdir('d'); os.chdir('d')\nos.chmod('.', 0)"
    subprocess.run([sys.executable, "-c", nest], cwd=folder, check=True)
    keep_files_alone(folder)
    assert not folder.exists()
    make_empty(folder)
    assert list(folder.iterdir()) == []


def test_a_name_that_is_no_text_can_be_kept(tmp_path: Path) -> None:
    trace = Trace(tmp_path / "steps.jsonl", lambda value: value)
    item = trace.start(0, "look")
    item.end(Outcome(output="file \udcff", finish_reason="stop", seconds=0.0, error=None))
    trace.close()
    finished = Trace(tmp_path / "steps.jsonl", lambda value: value).finished(0, "look")
    assert finished and finished.outcome and finished.outcome.output == "file \\udcff"
