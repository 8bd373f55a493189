//! Power loss: afterwards only synced data exists.
//!
//! A library preloaded into the server (`power_loss.c`) records what is synced. After the server is killed,
//! its directory is rebuilt from the record: every folder with its entries at the last sync, every file cut
//! to its length at the last sync. That is the least that a disk may keep. Every second run also keeps random
//! parts of the rest: entries, parts of files, or zeros in their place.
//!
//! Files here only grow or are written once, except `synced-seq`, which never claims more than the truth.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use crate::server::{Server, command};
use crate::world::{Crash, World, check_segments};
use crate::{seed, setting};

const WRITERS: u64 = 4;
const LOSSES_DEFAULT: u64 = 20;
const LIFE_MS: std::ops::RangeInclusive<u64> = 20..=400;
/// Maximum number of unwritten bytes within a file's length.
const ZEROS_MAX: u64 = 4_096;

/// A folder's entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Entry {
    inode: u64,
    is_folder: bool,
}

type Entries = BTreeMap<String, Entry>;

/// The contents of stable storage.
#[derive(Default)]
struct Synced {
    lengths: HashMap<u64, u64>,
    entries: HashMap<u64, Entries>,
}

/// What a disk keeps of unsynced data: nothing, or random parts.
struct Rest(Option<StdRng>);

/// What the power loss removed.
#[derive(Default)]
struct Lost {
    names: u64,
    bytes: u64,
}

impl fmt::Display for Lost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} names and {} bytes gone", self.names, self.bytes)
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn acknowledged_writes_survive_power_loss() {
    let losses = setting("KALAMDB_POWER_LOSSES", || LOSSES_DEFAULT);
    let seed = seed();
    let mut random = StdRng::seed_from_u64(seed);
    let folder = tempfile::tempdir().expect("temporary folder");
    let Some(recorder) = compile(folder.path()) else {
        println!(
            "left out: power loss is simulated by a library, and there is no C compiler \"cc\" to make it"
        );
        return;
    };
    // The server creates the data directory itself, so the directory's name must be durable, too.
    let mut root = folder.path().join("root-0");
    fs::create_dir(&root).expect("make a folder");
    let mut world: Option<World> = None;
    let mut lost = Lost::default();
    for loss in 0..losses {
        let shadow = folder.path().join(format!("shadow-{loss}"));
        fs::create_dir(&shadow).expect("make a folder");
        begin_record(&root, &shadow);
        let server = Server::spawn(recorded(&root, &shadow, &recorder)).await;
        let server = server.unwrap_or_else(|said| panic!("loss {loss}: {said}"));
        match &mut world {
            Some(world) => world.check(&server, Crash::Power, &format!("loss {loss}")).await,
            None => world = Some(World::create(&server, WRITERS, seed).await),
        }
        let world = world.as_mut().expect("a world");
        let failing = Arc::new(AtomicBool::new(false));
        let work = world.begin(&server, &failing).await;
        tokio::time::sleep(Duration::from_millis(random.random_range(LIFE_MS))).await;
        failing.store(true, Ordering::SeqCst);
        server.kill();
        world.end(work).await;

        let after = folder.path().join(format!("root-{}", loss + 1));
        let rest = Rest((loss % 2 == 1).then(|| StdRng::seed_from_u64(random.random())));
        let mut disk = Disk { synced: Synced::read(&shadow), shadow: &shadow, rest, lost: &mut lost };
        disk.restore(&root, &after);
        fs::remove_dir_all(&root).and_then(|()| fs::remove_dir_all(&shadow)).expect("clear up");
        root = after;
    }
    let Some(mut world) = world else { return };
    let server = Server::start(&root.join("data")).await;
    world.check(&server, Crash::Power, "after the last loss").await;
    let mut client = server.client(&world.token).await;
    check_segments(&mut client, &root.join("data"), "after the last loss").await;
    server.stop().await;
    println!(
        "power loss: {losses} times, seed {seed}, {} statements acknowledged, {lost}, {}",
        world.acknowledged(),
        world.tally
    );
    assert!(world.acknowledged() > 0, "no statement was acknowledged: nothing was tested");
    assert!(lost.names > 0 && lost.bytes > 0, "nothing was lost: nothing was tested");
}

/// Compiles the library; `None` without a compiler.
fn compile(folder: &Path) -> Option<PathBuf> {
    let library = folder.join("recorder.so");
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/crash/power_loss.c");
    let mut compiler = Command::new("cc");
    compiler.args(["-shared", "-fPIC", "-O1", "-o"]).arg(&library).arg(&source).arg("-ldl");
    let status = match compiler.status() {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return None,
        status => status.expect("run the compiler"),
    };
    assert!(status.success(), "power_loss.c does not compile");
    Some(library)
}

fn recorded(root: &Path, shadow: &Path, recorder: &Path) -> Command {
    let mut command = command(&root.join("data"));
    command
        .env("LD_PRELOAD", recorder)
        .env("POWER_LOSS_ROOT", root.canonicalize().expect("the folder"))
        .env("POWER_LOSS_SHADOW", shadow);
    command
}

/// Records the initial files: all of them are on stable storage.
fn begin_record(root: &Path, shadow: &Path) {
    let mut record = String::new();
    let mut folders = vec![root.to_owned()];
    while let Some(folder) = folders.pop() {
        let inode = fs::metadata(&folder).expect("a folder").ino();
        record.push_str(&format!("D {inode}\n"));
        let entries = entries_of(&folder);
        for (name, entry) in &entries {
            let kind = if entry.is_folder { 'd' } else { 'f' };
            record.push_str(&format!("{kind} {} {name}\n", entry.inode));
        }
        record.push_str(".\n");
        for (name, entry) in entries {
            let path = folder.join(name);
            if entry.is_folder {
                folders.push(path);
            } else {
                let length = fs::metadata(&path).expect("a file").len();
                record.push_str(&format!("F {} {length}\n.\n", entry.inode));
                fs::hard_link(&path, shadow.join(entry.inode.to_string())).expect("link a file");
            }
        }
    }
    fs::write(shadow.join("record"), record).expect("write the record");
}

fn entries_of(folder: &Path) -> Entries {
    let entries = fs::read_dir(folder).expect("a folder").map(|entry| {
        let entry = entry.expect("an entry");
        let name = entry.file_name().into_string().expect("a name in UTF-8");
        let is_folder = entry.file_type().expect("a kind").is_dir();
        (name, Entry { inode: entry.metadata().expect("an entry").ino(), is_folder })
    });
    entries.collect()
}

impl Synced {
    /// Reads the record; entries without a final "." were cut off when the process ended.
    fn read(shadow: &Path) -> Self {
        let text = fs::read_to_string(shadow.join("record")).expect("the record");
        let mut synced = Self::default();
        let mut lines = Vec::new();
        for line in text.lines() {
            if line == "." {
                synced.take(&std::mem::take(&mut lines));
            } else {
                lines.push(line);
            }
        }
        synced
    }

    fn take(&mut self, lines: &[&str]) {
        let number = |text: &str| text.parse::<u64>().unwrap_or_else(|_| panic!("a record of {lines:?}"));
        let (first, rest) = lines.split_first().expect("a line");
        match first.split(' ').collect::<Vec<_>>().as_slice() {
            ["F", inode, length] => {
                self.lengths.insert(number(inode), number(length));
            }
            ["D", inode] => {
                let entries = rest.iter().map(|line| {
                    let [kind, inode, name] = line.splitn(3, ' ').collect::<Vec<_>>()[..] else {
                        panic!("a record of {lines:?}");
                    };
                    (name.to_owned(), Entry { inode: number(inode), is_folder: kind == "d" })
                });
                self.entries.insert(number(inode), entries.collect());
            }
            _ => panic!("a record of {lines:?}"),
        }
    }
}

impl Rest {
    /// Whether the disk keeps an unsynced entry.
    fn is_kept(&mut self) -> bool {
        self.0.as_mut().is_some_and(|random| random.random_bool(0.5))
    }

    /// Returns a file's length, and how much of its end is zeros.
    fn length(&mut self, synced: u64, written: u64) -> (u64, u64) {
        match &mut self.0 {
            Some(random) if written > synced => {
                let length = random.random_range(synced..=written);
                let zeros = if random.random_bool(0.5) { 0 } else { random.random_range(0..=ZEROS_MAX) };
                (length, zeros.min(length - synced))
            }
            _ => (synced.min(written), 0),
        }
    }
}

/// A disk after a power loss.
struct Disk<'a> {
    synced: Synced,
    shadow: &'a Path,
    rest: Rest,
    lost: &'a mut Lost,
}

impl Disk<'_> {
    /// Rebuilds the folder `from` as `to`, in the state after the power loss.
    fn restore(&mut self, from: &Path, to: &Path) {
        let inode = fs::metadata(from).expect("a folder").ino();
        self.restore_folder(inode, Some(from), to);
    }

    /// `now` is the folder's current path, if it has a name.
    fn restore_folder(&mut self, inode: u64, now: Option<&Path>, to: &Path) {
        fs::create_dir(to).expect("make a folder");
        let synced = self.synced.entries.get(&inode).cloned().unwrap_or_default();
        let present = now.map(entries_of).unwrap_or_default();
        let names: BTreeSet<&String> = synced.keys().chain(present.keys()).collect();
        for name in names {
            let (old, new) = (synced.get(name).copied(), present.get(name).copied());
            let kept = if old != new && self.rest.is_kept() { new } else { old };
            if new.is_some() && kept != new {
                self.lost.names += 1;
            }
            let Some(entry) = kept else { continue };
            let place = now.map(|now| now.join(name)).filter(|_| new == Some(entry));
            if entry.is_folder {
                self.restore_folder(entry.inode, place.as_deref(), &to.join(name));
            } else {
                self.restore_file(entry.inode, place.as_deref(), &to.join(name));
            }
        }
    }

    fn restore_file(&mut self, inode: u64, now: Option<&Path>, to: &Path) {
        let link = self.shadow.join(inode.to_string());
        // A file that was never synced has a name but no contents.
        let source = if link.exists() { Some(link.as_path()) } else { now };
        let mut bytes = Vec::new();
        if let Some(source) = source {
            File::open(source).and_then(|mut file| file.read_to_end(&mut bytes)).expect("read a file");
        }
        let written = bytes.len() as u64;
        let synced = self.synced.lengths.get(&inode).copied().unwrap_or_default();
        let (length, zeros) = self.rest.length(synced, written);
        self.lost.bytes += written - length;
        let mut file = File::create(to).expect("make a file");
        let whole = usize::try_from(length - zeros).expect("a length");
        file.write_all(&bytes[..whole]).expect("write a file");
        file.set_len(length).expect("write a file");
    }
}
