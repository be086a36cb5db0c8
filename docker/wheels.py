"""Print the folder of this machine in which pip finds builds of the torch that is pinned, if there is one."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

version = Path("requirements/torch.txt").read_text(encoding="utf-8").strip().partition("==")[2]
said = subprocess.run([sys.executable, "-m", "pip", "config", "list"], stdout=subprocess.PIPE, text=True, check=True)
folders = [
    Path(word.removeprefix("file://"))
    for value in re.findall(r"find-links='([^']*)'", said.stdout)
    for word in shlex.split(value)
]
print(next((folder for folder in folders if any(folder.glob(f"torch-{version}*.whl"))), ""), end="")
