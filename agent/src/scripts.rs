//! Shell scripts in the place of programs, for tests.

use std::path::Path;

/// An executable shell script at `path`. A child writes it: if it were open for writing here, a program that
/// another test starts at that moment would inherit it, and running the script would fail with ETXTBSY
/// (execve(2)).
pub(crate) fn script(path: &Path, text: &str) {
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    let write = "printf '#!/bin/sh\\n%s\\n' \"$1\" > \"$0\" && chmod 755 \"$0\"";
    let status = std::process::Command::new("/bin/sh").arg("-c").arg(write).arg(path).arg(text).status();
    assert!(status.unwrap().success());
}
