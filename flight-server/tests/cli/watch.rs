//! `kalamdb watch`: its output, and its reconnect after a server restart.

use std::io::{BufRead, BufReader};
use std::process::{Child, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use crate::server::{Server, command_on};
use crate::{NOTES, kalamdb, stdout_of};

/// Time limit for a line.
const GIVE_UP: Duration = Duration::from_secs(30);

/// A running watch and the lines it prints.
struct Watch {
    child: Child,
    lines: Receiver<String>,
}

impl Watch {
    fn start(server: &Server, arguments: &[&str]) -> Self {
        let mut all = vec!["watch"];
        all.extend(arguments);
        let mut child = kalamdb(server, &all).stdout(Stdio::piped()).spawn().expect("run kalamdb");
        let stdout = child.stdout.take().expect("stdout");
        let (sender, lines) = channel();
        std::thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                if sender.send(line).is_err() {
                    return;
                }
            }
        });
        Self { child, lines }
    }

    fn line(&self) -> String {
        self.lines.recv_timeout(GIVE_UP).expect("a line in time")
    }

    /// Returns the next line without the seq, which depends on the database's numbering.
    fn change(&self) -> String {
        let line = self.line();
        let (op, rest) = line.split_once(',').expect("an operation");
        let (_, values) = rest.split_once(',').expect("a seq");
        format!("{op} {values}")
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn watch_prints_the_result_and_every_change() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let server = Server::start(folder.path()).await;
    stdout_of(&server, &["sql", "-c", NOTES]);
    let mut watch = Watch::start(&server, &["SELECT id, body FROM app.notes WHERE id < 10", "--limit", "5"]);
    assert_eq!(watch.line(), "_op,_seq,id,body");
    assert_eq!([watch.change(), watch.change()], ["insert 1,one", "insert 2,"]);
    for (sql, change) in [
        ("INSERT INTO app.notes VALUES (3, 'three'), (30, 'thirty')", "insert 3,three"),
        ("UPDATE app.notes SET body = 'two' WHERE id = 2", "update 2,two"),
        ("DELETE FROM app.notes WHERE id = 1", "delete 1,one"),
    ] {
        stdout_of(&server, &["sql", "-c", sql]);
        assert_eq!(watch.change(), change, "{sql}");
    }
    assert!(watch.child.wait().expect("the watch ends at its limit").success());
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn watch_goes_on_after_the_server_was_killed() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let server = Server::start(folder.path()).await;
    let address = server.address.clone();
    stdout_of(&server, &["sql", "-c", NOTES]);
    let query = "SELECT id, body FROM app.notes";
    let watch = Watch::start(&server, &[query]);
    assert_eq!(watch.line(), "_op,_seq,id,body");
    assert_eq!([watch.change(), watch.change()], ["insert 1,one", "insert 2,"]);
    stdout_of(&server, &["sql", "-c", "INSERT INTO app.notes VALUES (3, 'three')"]);
    assert_eq!(watch.change(), "insert 3,three");
    server.kill();

    let server = Server::spawn(command_on(folder.path(), &address)).await.expect("start again");
    stdout_of(&server, &["sql", "-c", "INSERT INTO app.notes VALUES (4, 'four')"]);
    // No line is printed twice and none is missing.
    assert_eq!(watch.change(), "insert 4,four");
    drop(watch);
    server.stop().await;
}
