# Installs wheels below the folder that the first word names, from the index that the second names, or pip's own.
# Ends with 75 where the index can't be reached, else as pip does.
import os, shutil, socket, subprocess, sys
from urllib.parse import urlsplit

root, index = sys.argv[1:3]
work = root + "/.install"
os.mkdir(work + "/tmp")
words = ["--no-input", "--no-cache-dir", "--only-binary=:all:", "--retries=2", "--timeout=15", "--progress-bar=off",
         "--target", root, "--requirement", work + "/requirements.txt"]
if index:
    parts = urlsplit(index)
    port = parts.port or (443 if parts.scheme == "https" else 80)
    try:
        socket.create_connection((parts.hostname, port), 15).close()
    except OSError as error:
        print(f"the package index {parts.hostname}:{port} can't be reached: {error}", flush=True)
        sys.exit(75)
    words += ["--index-url", index]
    if parts.scheme == "http":
        words += ["--trusted-host", parts.netloc]
if os.path.exists(work + "/ca.pem"):
    words += ["--cert", work + "/ca.pem"]
os.chdir(work + "/tmp")
env = {"PATH": os.environ.get("PATH", ""), "HOME": "/tmp", "TMPDIR": work + "/tmp", "LANG": "C.UTF-8",
       "PIP_CONFIG_FILE": os.devnull}
pip = [sys.executable, "-I", "-m", "pip", "--isolated", "--disable-pip-version-check", "install"]
code = subprocess.run(pip + words, env=env).returncode
os.chdir("/")
shutil.rmtree(work)
sys.exit(code)
