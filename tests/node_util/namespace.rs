//! Tests in a network name space of their own.

use std::process::Command;

/// Tells the child of [`in_namespace`] which test it runs.
const CHILD: &str = "HM_LINK_CHILD";

/// Runs the test of this name again in a process with a network name space of its own; true inside of it.
pub fn in_namespace(test: &str) -> bool {
    if std::env::var(CHILD).is_ok_and(|child| child == test) {
        return true;
    }
    // Root needs no user name space, which some machines forbid; others need one.
    let user = if rustix::process::geteuid().is_root() { &[][..] } else { &["--user", "--map-root-user"] };
    let output = Command::new("unshare")
        .args(user)
        .args(["--net", "--"])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", test, "--nocapture"])
        .env(CHILD, test)
        .output()
        .expect("this test needs unshare, of util-linux");
    let (said, errors) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    println!("{said}");
    assert!(output.status.success() && said.contains("1 passed"), "{errors}");
    false
}
