//! Tests of hashes, of the threads that compute them, and of the passwords in statements.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Barrier};

use super::*;
use crate::Database;
use crate::failpoint::PLANNED;

/// Keeps all threads busy and their queue full until the returned senders are dropped.
fn occupy(passwords: &Passwords) -> Vec<std::sync::mpsc::Sender<()>> {
    let (begins, began) = std::sync::mpsc::channel();
    let hold = |_| {
        let (hold, held) = std::sync::mpsc::channel::<()>();
        let begins = begins.clone();
        let job: Job = Box::new(move |_| {
            begins.send(()).unwrap();
            let _dropped = held.recv();
        });
        assert!(passwords.queue.try_send(job).is_ok());
        hold
    };
    let holds = (0..threads()).map(hold).collect();
    for _ in 0..threads() {
        began.recv().unwrap();
    }
    while passwords.queue.try_send(Box::new(|_| ())).is_ok() {}
    holds
}

/// Runs two statements about users so that one of them conflicts and is planned again. As soon as both are
/// planned, nothing can be hashed any more. Returns the database.
async fn check(before: &[&str], objects: &[&str], statements: [&'static str; 2]) -> Database {
    let database = Database::open_in_memory().await.unwrap();
    let root = database.session_for("root").unwrap();
    for sql in before {
        root.execute(sql, ()).await.unwrap();
    }
    let passwords = Arc::clone(&root.view().unwrap().engine.passwords);
    let (arrived, met) = (Arc::new(AtomicUsize::new(0)), Arc::new(Barrier::new(2)));
    let holds = Arc::new(Mutex::new(Vec::new()));
    for object in objects {
        let (arrived, met) = (Arc::clone(&arrived), Arc::clone(&met));
        let (passwords, holds) = (Arc::clone(&passwords), Arc::clone(&holds));
        let hold = move || {
            if arrived.fetch_add(1, Ordering::Relaxed) < 2 {
                if met.wait().is_leader() {
                    *holds.lock() = occupy(&passwords);
                }
                met.wait();
            }
        };
        fail::cfg_callback(format!("{PLANNED}{object}"), hold).unwrap();
    }
    let running = statements.map(|sql| {
        let session = root.clone();
        tokio::spawn(async move { session.execute(sql, ()).await.map(|_| ()) })
    });
    for statement in running {
        statement.await.unwrap().unwrap();
    }
    assert_eq!(arrived.load(Ordering::Relaxed), 3, "one of them is planned again");
    for object in objects {
        fail::remove(format!("{PLANNED}{object}"));
    }
    holds.lock().clear();
    database
}

fn is_password(database: &Database, user: &str, password: &str) -> bool {
    let snapshot = database.context().committer.snapshot();
    let stored = snapshot.catalog.user_by_name(user).unwrap().password_hash.clone().unwrap();
    matches(password.as_bytes(), &stored, &mut Vec::new()).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_statement_that_is_planned_again_hashes_its_password_once() {
    let created = [
        "CREATE USER 'dora' WITH PASSWORD 'password of dora'",
        "CREATE USER 'emil' WITH PASSWORD 'password of emil'",
    ];
    let database = check(&[], &["dora", "emil"], created).await;
    for user in ["dora", "emil"] {
        assert!(is_password(&database, user, &format!("password of {user}")));
    }
    database.shutdown().await.unwrap();

    let before = ["CREATE USER 'frida' WITH PASSWORD 'password of frida'"];
    let altered =
        ["ALTER USER 'frida' SET PASSWORD 'password 1'", "ALTER USER 'frida' SET PASSWORD 'password 2'"];
    let database = check(&before, &["frida"], altered).await;
    let is_set = ["password 1", "password 2"].map(|password| is_password(&database, "frida", password));
    assert!(is_set == [true, false] || is_set == [false, true], "{is_set:?}");
    database.shutdown().await.unwrap();
}

/// Hashes made by the reference implementation: with our parameters, and with small ones.
const OLD: [(&str, &str); 2] = [
    (
        "an old password",
        "$argon2id$v=19$m=19456,t=2,p=1$AAECAwQFBgcICQoLDA0ODw$\
         FwW61Tn2s4+vbmzLTOwDxBZvgx/vVIW9QI9+06iUw9c",
    ),
    ("a smaller one", "$argon2id$v=19$m=64,t=1,p=1$c2FsdHNhbHRzYWx0c2FsdA$1G/2jLTF/O7BmdniqcKIXPFfrtehpnIi"),
];

#[tokio::test]
async fn hashes_of_earlier_programs_are_known_again() {
    let passwords = Passwords::start().unwrap();
    for (password, hash) in OLD {
        let hash = || Some(hash.to_owned());
        assert!(passwords.verify(password, hash()).await.unwrap(), "{password}");
        assert!(!passwords.verify("another password", hash()).await.unwrap(), "{password}");
    }
}

#[tokio::test]
async fn a_hash_has_the_parameters_of_the_first_release_and_matches_its_password_alone() {
    let passwords = Passwords::start().unwrap();
    let hash = passwords.hash("correct horse").await.unwrap();
    assert!(hash.starts_with("$argon2id$v=19$m=19456,t=2,p=1$"), "{hash}");
    assert_eq!(hash.len(), OLD[0].1.len(), "{hash}");
    assert_ne!(hash, passwords.hash("correct horse").await.unwrap(), "the salt differs");
    assert!(passwords.verify("correct horse", Some(hash.clone())).await.unwrap());
    assert!(!passwords.verify("correct horses", Some(hash)).await.unwrap());
    assert!(!passwords.verify("correct horse", None).await.unwrap());
    for damaged in ["", "$argon2id$v=19$m=19456,t=2,p=1", "$scrypt$v=19$m=64,t=1,p=1$c2FsdHNhbHQ$AAAA"] {
        let error = passwords.verify("correct horse", Some(damaged.to_owned())).await.unwrap_err();
        assert_eq!(error.sqlstate(), SqlState::DATA_CORRUPTED, "{damaged}: {error}");
    }
}

#[tokio::test]
async fn who_stops_waiting_costs_nothing_and_a_panic_one_answer() {
    let passwords = Passwords::start().unwrap();
    let (begun, mut has_begun) = tokio::sync::mpsc::channel::<()>(2 * threads());
    let mut release = Vec::new();
    let mut busy = Vec::new();
    for _ in 0..threads() {
        let (go, wait) = std::sync::mpsc::channel::<()>();
        release.push(go);
        let begun = begun.clone();
        busy.push(Box::pin(passwords.compute(move |_| {
            begun.blocking_send(()).unwrap();
            wait.recv().unwrap();
            Ok(())
        })));
    }
    for work in &mut busy {
        assert!(futures::poll!(work).is_pending());
    }
    for _ in 0..threads() {
        has_begun.recv().await.unwrap();
    }
    // All threads are busy: this one is given up before its turn.
    let mut given_up = Box::pin(passwords.compute(|_| -> Result<()> { panic!("nobody waits") }));
    assert!(futures::poll!(&mut given_up).is_pending());
    drop(given_up);
    drop(release);
    for work in busy {
        let error = work.await.unwrap_err();
        assert_eq!(error.sqlstate(), SqlState::INTERNAL, "{error}");
    }
    assert!(passwords.compute(|_| Ok(true)).await.unwrap(), "the threads go on");
}

#[cfg(target_os = "linux")]
#[tokio::test]
async fn the_threads_go_before_statements_and_after_all_other_work() {
    use crate::platform::STATEMENT_PRIORITY;

    /// Returns the priority of the current thread.
    fn nice() -> i32 {
        let stat = std::fs::read_to_string("/proc/thread-self/stat").unwrap();
        // The name in parentheses, the second field, may have spaces.
        let (_, fields) = stat.rsplit_once(')').unwrap();
        fields.split_whitespace().nth(16).unwrap().parse().unwrap()
    }
    let own = nice();
    let passwords = Passwords::start().unwrap();
    let all = Arc::new(Barrier::new(threads()));
    let asked = (0..threads()).map(|_| {
        let all = Arc::clone(&all);
        passwords.compute(move |_| {
            all.wait();
            Ok((nice(), std::thread::current().name().map(str::to_owned)))
        })
    });
    for answer in futures::future::join_all(asked).await {
        let (nice, name) = answer.unwrap();
        assert_eq!((nice, name.as_deref()), (own.max(LOGIN_PRIORITY), Some("kalam-login")));
    }
    const { assert!(0 < LOGIN_PRIORITY && LOGIN_PRIORITY < STATEMENT_PRIORITY) };
}
