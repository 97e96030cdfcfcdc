"""A server of the Model Context Protocol for tests: `python mcp_server.py`, over standard input and output."""

import os
import socket
import sys

from mcp.server import MCPServer
from mcp.server.mcpserver.exceptions import ToolError

server = MCPServer("tests")


@server.tool()
def add(a: int, b: int) -> int:
    """Add two numbers."""
    return a + b


@server.tool()
def look(path: str) -> str:
    """Tell what this server can see."""
    try:
        socket.create_connection(("1.1.1.1", 80), 2)
        network = "network"
    except OSError:
        network = "no network"
    told = (os.environ.get(name) for name in ("TOKEN", "OTHER"))
    return f"{sorted(os.listdir('.'))} {os.path.exists(path)} {network} {' '.join(map(str, told))}"


@server.tool()
def fail() -> str:
    """Fail."""
    raise ToolError("not today")


if __name__ == "__main__":
    if "--broken" in sys.argv:
        sys.exit("no settings were found")
    if "--http" in sys.argv:
        server.run("streamable-http", host="127.0.0.1", port=int(sys.argv[-1]))
    else:
        server.run("stdio")
