"""`file_browser` and `file_edit`: the files of the item's work folder."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

from executors.agent.tools.fault import ToolFault
from executors.agent.tools.folder import Folder
from executors.agent.tools.room import Room

_LINES = 400


def file_browser(room: Room) -> Callable[..., str]:
    """Return the tool that looks at files."""
    folder = Folder(room.folder)

    def browse(
        path: Annotated[str, "A file or a folder inside the work folder; . is the work folder itself"] = ".",
        first_line: Annotated[int, "First line of a file that is shown, from 1"] = 1,
    ) -> str:
        """List a folder, or show the lines of a file, of your work folder."""
        if folder.is_folder(path):
            return "\n".join(folder.entries(path)) or "The folder is empty."
        lines = folder.read(path).splitlines()
        shown = lines[max(0, first_line - 1) :][:_LINES]
        if not shown:
            return f"{path} has {len(lines)} lines."
        last = max(1, first_line) + len(shown) - 1
        rest = f"\n[{len(lines) - last} more lines; go on with first_line {last + 1}]" if last < len(lines) else ""
        return "\n".join(shown) + rest

    return browse


def file_edit(room: Room) -> Callable[..., str]:
    """Return the tool that changes files."""
    folder = Folder(room.folder)

    def edit(
        path: Annotated[str, "A file inside the work folder"],
        text: Annotated[str, "The new text"],
        old: Annotated[str | None, "Text of the file that is replaced; the whole file when it is not given"] = None,
    ) -> str:
        """Write a file of your work folder, or replace a part of it."""
        if old:
            content = folder.whole(path)
            if content.count(old) != 1:
                raise ToolFault(f"{path!r} holds the old text {content.count(old)} times; it must be there once.")
            text = content.replace(old, text)
        folder.write(path, text)
        return f"{path} is written: {len(text.splitlines())} lines."

    return edit
