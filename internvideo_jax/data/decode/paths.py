"""Names of files: what looks like a clip, what is hidden, and what lies inside a folder."""

import os

# Which files in a folder are taken for videos; a file that is named explicitly always is.
VIDEO_EXTENSIONS = (
    *(".mp4", ".m4v", ".mov", ".3gp", ".mkv", ".webm", ".avi", ".gif", ".mpg", ".mpeg", ".ts"),
    *(".mts", ".m2ts", ".flv", ".wmv", ".asf", ".ogv"),
)
IMAGE_EXTENSIONS = (".jpg", ".jpeg", ".png")
# Clips without pictures.
AUDIO_EXTENSIONS = (".wav", ".flac", ".mp3", ".m4a", ".aac", ".ogg", ".opus")

# What systems and file servers leave in folders, beside all that begins with a dot.
_SYSTEM_FOLDERS = frozenset(
    ("__MACOSX", "@eaDir", "$RECYCLE.BIN", "System Volume Information", "lost+found")
)


def is_hidden(name: str) -> bool:
    """Whether a file or folder of this name in a folder is nobody's data.

    Such are previews, caches, and macOS's companions `._NAME` of all files.

    Args:
      name: without its folder.
    """
    return name.startswith(".") or name in _SYSTEM_FOLDERS


def join_inside(root: str, path: str) -> str | None:
    """The absolute path that `path` names from `root`, or None if it is outside of `root`.

    The decision is one of names alone: `..` is taken back before it is made, symbolic links are
    followed wherever the owner of `root` lets them point.

    Args:
      root: absolute, normalised, without a trailing separator unless it is the root of the disk.
      path: relative to `root`, or absolute.
    """
    prefix = root if root.endswith(os.sep) else root + os.sep
    # Most paths are in order already, and there may be millions.
    if path[:1] in "/." or path[-1:] == "/" or "/." in path or "//" in path:
        path = os.path.normpath(os.path.join(root, path))
        return path if path.startswith(prefix) or path == root else None
    return prefix + path
