//! Input archives that others made: Python's tarfile and zipfile, and what the tools of the machine make. Each is to come
//! out with the same files.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::io::{Cursor, Read};
use std::process::Command;

use hivemind_worker::sandbox::{InputError, Starter, rewrite_inputs};

/// Makes every archive into the folder that it is given, all with the same three files.
const MAKE: &str = r#"
import gzip, io, os, sys, tarfile, zipfile
os.chdir(sys.argv[1])
LONG = 'long/' + 'n' * 80 + '/' + 'm' * 90 + '/ü.txt'
files = {'main.py': b'print(1)\n' * 100, 'data/empty': b'', LONG: bytes(range(256)) * 300}
for name, content in files.items():
    os.makedirs(os.path.dirname('src/' + name), exist_ok=True)
    open('src/' + name, 'wb').write(content)
for form, number in {'ustar': tarfile.USTAR_FORMAT, 'gnu': tarfile.GNU_FORMAT, 'pax': tarfile.PAX_FORMAT}.items():
    for mode, ending in {'w': 'tar', 'w:gz': 'tar.gz'}.items():
        with tarfile.open(f'python-{form}.{ending}', mode, format=number) as tar:
            tar.add('src', '.')
for method, level in {zipfile.ZIP_STORED: 'stored', zipfile.ZIP_DEFLATED: 'deflated'}.items():
    with zipfile.ZipFile(f'python-{level}.zip', 'w', method) as zip:
        zip.comment = b'a comment'
        for name, content in files.items():
            zip.writestr(name, content)
        zip.writestr(zipfile.ZipInfo('folder/'), b'')
class Pipe(io.RawIOBase):
    'Cannot seek, so that sizes come behind the data.'
    def __init__(self): self.bytes = bytearray()
    def writable(self): return True
    def write(self, data): self.bytes += data; return len(data)
for zip64 in False, True:
    pipe = Pipe()
    with zipfile.ZipFile(pipe, 'w', zipfile.ZIP_DEFLATED) as zip:
        for name, content in files.items():
            with zip.open(name, 'w', force_zip64=zip64) as out:
                out.write(content)
    open(f'python-streamed-{zip64}.zip', 'wb').write(pipe.bytes)
with zipfile.ZipFile('python-zip64.zip', 'w', zipfile.ZIP_DEFLATED) as zip:
    for name, content in files.items():
        with zip.open(name, 'w', force_zip64=True) as out:
            out.write(content)
hostile = {
    'symlink.tar': lambda: tar_of(lambda i: (setattr(i, 'type', tarfile.SYMTYPE), setattr(i, 'linkname', '/etc/passwd'))),
    'hardlink.tar': lambda: tar_of(lambda i: (setattr(i, 'type', tarfile.LNKTYPE), setattr(i, 'linkname', 'main.py'))),
    'device.tar': lambda: tar_of(lambda i: setattr(i, 'type', tarfile.CHRTYPE)),
    'fifo.tar': lambda: tar_of(lambda i: setattr(i, 'type', tarfile.FIFOTYPE)),
    'absolute.tar': lambda: tar_of(lambda i: setattr(i, 'name', '/etc/cron.d/x')),
    'up.tar': lambda: tar_of(lambda i: setattr(i, 'name', '../../x')),
    'up-long.tar': lambda: tar_of(lambda i: setattr(i, 'name', 'd/' * 60 + '../' * 61 + 'x')),
    'up.zip': lambda: zip_of('../x', 0o100644),
    'absolute.zip': lambda: zip_of('/x', 0o100644),
    'symlink.zip': lambda: zip_of('x', 0o120777),
    'twice.zip': lambda: zip_of('x', 0o100644, 2),
}
def tar_of(change):
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode='w', format=tarfile.PAX_FORMAT) as tar:
        info = tarfile.TarInfo('x')
        change(info)
        tar.addfile(info)
    return out.getvalue()
def zip_of(name, mode, times=1):
    out = io.BytesIO()
    with zipfile.ZipFile(out, 'w') as zip:
        for _ in range(times):
            info = zipfile.ZipInfo(name)
            info.external_attr = mode << 16
            zip.writestr(info, b'content')
    return out.getvalue()
import warnings
warnings.simplefilter('ignore')
for name, make in hostile.items():
    open('hostile-' + name, 'wb').write(make())
bomb = gzip.compress(b'\0' * (64 << 20))
open('hostile-bomb.tar.gz', 'wb').write(bomb)
big = io.BytesIO()
with zipfile.ZipFile(big, 'w', zipfile.ZIP_DEFLATED) as zip:
    zip.writestr('zeros', b'\0' * (64 << 20))
open('hostile-bomb.zip', 'wb').write(big.getvalue())
"#;

struct Folder(std::path::PathBuf);

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn made(name: &str) -> Folder {
    let folder = Folder(std::env::temp_dir().join(format!("hivemind-archives-{name}-{}", std::process::id())));
    std::fs::create_dir_all(&folder.0).unwrap();
    let python = std::env::var_os("HIVEMIND_TEST_PYTHON")
        .expect("HIVEMIND_TEST_PYTHON is not set: it must name a Python (scripts/test.sh does it)");
    let status = Command::new(python).arg("-c").arg(MAKE).arg(&folder.0).status().unwrap();
    assert!(status.success());
    folder
}

fn rewritten(bytes: &[u8]) -> Result<BTreeMap<String, Vec<u8>>, InputError> {
    let mut out = Vec::new();
    rewrite_inputs(Cursor::new(bytes), &mut out, 1 << 20, Starter::Omit)?;
    let mut files = BTreeMap::new();
    for entry in tar::Archive::new(out.as_slice()).entries().unwrap() {
        let mut entry = entry.unwrap();
        if entry.header().entry_type() == tar::EntryType::Regular {
            let mut content = Vec::new();
            entry.read_to_end(&mut content).unwrap();
            files.insert(entry.path().unwrap().display().to_string(), content);
        }
    }
    Ok(files)
}

fn expected() -> BTreeMap<String, Vec<u8>> {
    let bytes: Vec<u8> = (0..=255).collect();
    let long = format!("long/{}/{}/ü.txt", "n".repeat(80), "m".repeat(90));
    let files = [("main.py".to_owned(), b"print(1)\n".repeat(100)), ("data/empty".to_owned(), Vec::new())];
    files.into_iter().chain([(long, bytes.repeat(300))]).collect()
}

#[test]
fn archives_of_other_programs_come_out_as_they_went_in() {
    let folder = made("good");
    // Of the machine, where they are.
    for command in [
        "tar cf gnu-tar.tar -C src .",
        "tar czf gnu-tar.tar.gz -C src .",
        "tar cf gnu-posix.tar --format=posix -C src main.py data long",
        "! command -v zip || (cd src && zip -qr ../info-zip.zip . && zip -q0r ../info-zip-stored.zip .)",
        "! command -v zip || (cd src && zip -qr - . | cat >../info-zip-streamed.zip)",
    ] {
        let status = Command::new("sh")
            .arg("-c")
            .arg(command)
            .current_dir(&folder.0)
            .stdout(std::process::Stdio::null())
            .status();
        assert!(status.unwrap().success(), "{command}");
    }
    let mut count = 0;
    for entry in std::fs::read_dir(&folder.0).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap().to_owned();
        if path.is_file() && !name.starts_with("hostile-") {
            let files = rewritten(&std::fs::read(&path).unwrap()).unwrap_or_else(|error| panic!("{name}: {error}"));
            assert!(files == expected(), "{name}: {:?}", files.keys());
            count += 1;
        }
    }
    assert!(count >= 15, "{count} archives");
}

#[test]
fn hostile_archives_are_refused_with_a_word_on_why() {
    let folder = made("hostile");
    let out = "its path leads out of the work folder";
    let kinds = "only files and folders are taken";
    for (name, reason) in [
        ("symlink.tar", kinds),
        ("hardlink.tar", kinds),
        ("device.tar", kinds),
        ("fifo.tar", kinds),
        ("absolute.tar", out),
        ("up.tar", out),
        ("up-long.tar", out),
        ("up.zip", out),
        ("absolute.zip", out),
        ("symlink.zip", kinds),
        ("twice.zip", "it is there twice"),
        ("bomb.tar.gz", "more than 1 MiB of zeros"),
        ("bomb.zip", "more than the task's disk limit of 1048576 bytes"),
    ] {
        let bytes = std::fs::read(folder.0.join(format!("hostile-{name}"))).unwrap();
        let told = match rewritten(&bytes) {
            Err(error @ InputError::Refused(_)) => error.to_string(),
            other => panic!("{name}: {other:?}"),
        };
        assert!(told.contains(reason), "{name}: {told}");
    }
}
