//! Warden with real processes, namespaces and cgroups: as root, and as an ordinary user.

#![expect(
    clippy::disallowed_methods,
    clippy::print_stdout,
    clippy::unwrap_used,
    reason = "a test writes throw-away files, starts the program under test and says what it skips"
)]

mod world;

use std::fs::{self, Permissions};
use std::os::fd::AsFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::process::Command;

use contract::grant::{Grant, Network, Standing};
use contract::warden::{
    End, ExecutableFlags, Facts, MAX_BODY, Reason, Reply, Request, State, VERSION, Weaker,
};
use local::warden::{WardenError, receive, send, seqpacket, with_address};
use rustix::net::SocketFlags;
use rustix::process::{Pid, PidfdFlags, getpid, pidfd_open};

use world::{Who, World, copy, digest, everybody, module, shell, wait};

/// The lines of a module's report, each `key value...`.
fn value<'a>(report: &'a str, key: &str) -> &'a str {
    let line = report
        .lines()
        .find_map(|line| line.strip_prefix(key)?.strip_prefix(' '));
    line.unwrap_or_else(|| panic!("no {key} in {report}"))
}

#[test]
fn a_module_lives_in_namespaces_of_its_own_with_nothing_of_its_starter() {
    for who in everybody() {
        let world = World::new(who);
        world.grant(
            "m",
            "echo pidns $(readlink /proc/$$/ns/pid); echo mntns $(readlink /proc/$$/ns/mnt); \
             echo pids $(ls /proc | grep -c '^[0-9]'); echo me $$; \
             for f in $HOST_RUN; do [ -e /run/$f ] && echo leaked /run/$f; done; echo edge $(cat /run/iotedge/workload); \
             echo fds; ls /proc/$$/fd; echo env $(tr '\\0' ' ' < /proc/$$/environ); \
             grep -E '^(Cap|NoNewPrivs|Groups|Uid|Gid)' /proc/$$/status; \
             echo core $(ulimit -c); echo umask $(umask); echo cwd $(pwd); echo tty $(ps -o tty= $$); \
             echo sigs $(grep -E '^Sig(Ign|Blk)' /proc/$$/status)",
            "",
        );
        let run: Vec<_> = fs::read_dir("/run")
            .unwrap()
            .map(|e| e.unwrap().file_name())
            .collect();
        let run = run
            .iter()
            .filter_map(|name| name.to_str())
            .filter(|name| *name != "iotedge");
        let run = run.collect::<Vec<_>>().join(" ");
        let running = world
            .start("m", &[("HOST_RUN", &run), ("PATH", "/evil")])
            .unwrap();
        let facts = running.running.facts.clone();
        let report = running.all();
        assert_eq!(
            value(&report, "pidns"),
            format!("pid:[{}]", facts.pid_ns),
            "{who:?}"
        );
        assert_eq!(value(&report, "mntns"), format!("mnt:[{}]", facts.mount_ns));
        assert_eq!(value(&report, "me"), "2");
        let pids: u32 = value(&report, "pids").parse().unwrap();
        assert!(pids <= 6, "{report}");
        assert!(!report.contains("leaked") && !run.is_empty(), "{report}");
        assert_eq!(value(&report, "edge"), "socket here");
        assert!(report.contains("\nfds\n0\n1\n2\nenv "), "{report}");
        let env = format!("PATH=/usr/local/bin:/usr/bin:/bin HOST_RUN={run}");
        assert_eq!(value(&report, "env"), env);
        for set in ["CapInh:", "CapPrm:", "CapEff:", "CapBnd:", "CapAmb:"] {
            assert!(
                report.contains(&format!("{set}\t0000000000000000")),
                "{set} {report}"
            );
        }
        assert!(report.contains("NoNewPrivs:\t1"), "{report}");
        let uid = world.uid();
        assert!(
            report.contains(&format!("Uid:\t{uid}\t{uid}\t{uid}\t{uid}")),
            "{report}"
        );
        assert_eq!(
            (value(&report, "core"), value(&report, "umask")),
            ("0", "0027")
        );
        assert_eq!(value(&report, "cwd"), "/");
        // Only SIGXFSZ is ignored: a file over its limit is an error and not the end.
        let sizes = "SigBlk: 0000000000000000 SigIgn: 0000000001000000";
        assert_eq!(value(&report, "sigs"), sizes);
        assert_weaker(&facts, who);
    }
}

/// Facts name exactly what this standing and this kernel lack.
fn assert_weaker(facts: &Facts, who: Who) {
    assert_eq!(facts.weaker.contains(Weaker::UID_SHARED), who != Who::Root);
    assert_eq!(
        facts.weaker.contains(Weaker::CGROUP_ABSENT),
        facts.cgroup.is_none()
    );
    if who == Who::Root
        && fs::read_to_string("/proc/mounts")
            .unwrap()
            .contains(" cgroup2 ")
    {
        assert!(facts.cgroup.is_some());
    }
}

#[test]
fn a_module_changes_and_reads_only_what_its_grant_names() {
    for who in everybody() {
        let world = World::new(who);
        let (mine, other) = (world.folder("mine"), world.folder("other"));
        fs::write(format!("{other}/secret"), "x").unwrap();
        fs::set_permissions(format!("{other}/secret"), Permissions::from_mode(0o644)).unwrap();
        world.grant(
            "m",
            &format!(
                "echo in $(echo 1 2>&1 > {mine}/f && cat {mine}/f); \
                 (echo 1 > {other}/f) 2>/dev/null && echo out written; \
                 (cat {other}/secret) 2>/dev/null && echo out read; \
                 (echo 1 > /run/x) 2>/dev/null && echo out run; \
                 cp /usr/bin/true {mine}/t && {mine}/t 2>/dev/null && echo out executed; \
                 echo end here"
            ),
            &format!("write = [{mine:?}]"),
        );
        let module = world.start("m", &[]).unwrap();
        let landlock = !module
            .running
            .facts
            .weaker
            .contains(Weaker::LANDLOCK_ABSENT);
        let report = module.all();
        assert_eq!(value(&report, "in"), "1", "{who:?} {report}");
        assert_eq!(value(&report, "end"), "here");
        if landlock {
            assert!(!report.contains("out"), "{who:?} {report}");
        } else {
            println!("SKIPPED: the kernel has no Landlock");
        }
        assert!(!fs::exists(format!("{other}/f")).unwrap() || !landlock);
    }
}

#[test]
fn a_module_without_network_sees_only_its_loopback() {
    for who in everybody() {
        let world = World::new(who);
        world.grant("m", "grep -c : /proc/net/dev", "network = 'none'");
        let module = world.start("m", &[]).unwrap();
        assert_eq!(module.running.facts.network, Network::None);
        assert_eq!(module.all(), "1\n", "{who:?}");
    }
}

#[test]
fn limits_of_the_grant_hold() {
    for who in everybody() {
        let world = World::new(who);
        world.grant(
            "m",
            "ulimit -p; ulimit -d",
            "processes = 20\nprocess_memory = 67108864",
        );
        assert_eq!(
            world.start("m", &[]).unwrap().all(),
            "20\n65536\n",
            "{who:?}"
        );
    }
}

#[test]
fn a89_a_grant_that_is_unknown_unguarded_or_unsound_starts_nothing() {
    for who in everybody() {
        let world = World::new(who);
        let grants = world.dir.join("grants");
        let path = world.grant("m", "echo ran", "");
        assert_eq!(world.start("m", &[]).unwrap().all(), "ran\n");
        assert_eq!(world.refusal("other"), Reason::UnknownGrant);

        fs::set_permissions(&path, Permissions::from_mode(0o664)).unwrap();
        assert_eq!(world.refusal("m"), Reason::UnguardedGrant, "{who:?}");
        fs::set_permissions(&path, Permissions::from_mode(0o644)).unwrap();
        fs::set_permissions(&grants, Permissions::from_mode(0o1777)).unwrap();
        assert_eq!(world.refusal("m"), Reason::UnguardedGrant);
        fs::set_permissions(&grants, Permissions::from_mode(0o755)).unwrap();
        if rustix::process::geteuid().is_root() {
            std::os::unix::fs::chown(&path, Some(60_001), None).unwrap();
            assert_eq!(world.refusal("m"), Reason::UnguardedGrant);
        }
        let text = fs::read_to_string(&path).unwrap();
        for (from, to) in [
            ("args =", "powers = ['all']\nargs ="),
            ("uid = ", "uid = 0 # "),
            ("sha256 = '", "sha256 = 'z"),
        ] {
            world.write(&path, &text.replacen(from, to, 1));
            assert_eq!(world.refusal("m"), Reason::InvalidGrant, "{to}");
        }
        fs::rename(&path, world.dir.join("elsewhere")).unwrap();
        std::os::unix::fs::symlink(world.dir.join("elsewhere"), &path).unwrap();
        assert_eq!(world.refusal("m"), Reason::InvalidGrant);
    }
}

#[test]
fn a89_another_program_at_the_granted_path_is_refused() {
    for who in everybody() {
        let world = World::new(who);
        let program = world.dir.join("program");
        copy(&shell(), &program);
        world.write(&world.dir.join("script"), "#!/bin/sh\necho ran\n");
        world.grant_program("m", &program, &["-c", "echo up"], "");
        world.grant_program("script", &world.dir.join("script"), &[], "");
        assert_eq!(world.refusal("script"), Reason::Executable);
        fs::set_permissions(&program, Permissions::from_mode(0o777)).unwrap();
        assert_eq!(world.refusal("m"), Reason::Executable, "{who:?}");
        fs::set_permissions(&program, Permissions::from_mode(0o755)).unwrap();

        let running = world.start("m", &[]).unwrap();
        assert_eq!(running.running.facts.executable.digest, digest(&shell()));
        assert_eq!(running.all(), "up\n");
        copy(Path::new("/usr/bin/true"), &world.dir.join("new"));
        fs::rename(world.dir.join("new"), &program).unwrap();
        assert_eq!(world.refusal("m"), Reason::Digest, "{who:?}");
    }
}

#[test]
fn a117_the_program_that_runs_is_the_one_that_was_measured_whatever_its_path_holds_now() {
    for who in everybody() {
        let world = World::new(who);
        let program = world.dir.join("program");
        copy(&shell(), &program);
        world.grant_program(
            "m",
            &program,
            &["-c", "echo up; read forever; while :; do :; done"],
            "",
        );
        let mut running = world.start("m", &[]).unwrap();
        assert_eq!(running.line(), "up");
        fs::remove_file(&program).unwrap();
        copy(Path::new("/usr/bin/true"), &program);
        let measured = world.client().measure(running.program().as_fd()).unwrap();
        assert_eq!(
            measured.executable, running.running.facts.executable,
            "{who:?}"
        );
        assert_eq!(measured.executable.digest, digest(&shell()));
        assert!(measured.flags.contains(ExecutableFlags::DELETED));
    }
}

#[test]
fn facts_of_processes_are_theirs() {
    for who in everybody() {
        let world = World::new(who);
        world.grant("m", "echo up; sleep 1000", "");
        let mut running = world.start("m", &[]).unwrap();
        assert_eq!(running.line(), "up");
        let facts = running.running.facts.clone();
        let own_ns = fs::metadata("/proc/self/ns/pid").unwrap().ino();
        let measured = world.client().measure(running.program().as_fd()).unwrap();
        assert_eq!(measured.pid_namespaces, [facts.pid_ns, own_ns], "{who:?}");
        assert_eq!(measured.mount_ns, facts.mount_ns);
        assert_eq!(measured.executable, facts.executable);
        assert_eq!((measured.uid, measured.gid), (facts.uid, facts.gid));
        assert!(!measured.flags.contains(ExecutableFlags::DELETED));
        if who == Who::Root {
            assert_eq!(measured.cgroup, facts.cgroup);
        }

        let own = pidfd_open(getpid(), PidfdFlags::empty()).unwrap();
        let own = world.client().measure(own.as_fd());
        if who == Who::User(65_533) {
            let Err(WardenError::Refused(refusal)) = own else {
                panic!("{own:?}")
            };
            assert_eq!(refusal.reason, Reason::Hidden);
        } else {
            let own = own.unwrap();
            assert_eq!(own.pid, std::process::id());
            assert_eq!(own.tgid, own.pid);
            assert_eq!(own.pid_namespaces, [own_ns]);
            // No program of warden's: not read, however large it is.
            assert_eq!(own.executable.digest, [0; 32]);
            assert_eq!(own.flags, ExecutableFlags::NOT_READ);
        }
        let no_process = fs::File::open("/dev/null").unwrap();
        let refused = world.client().measure(no_process.as_fd());
        let Err(WardenError::Refused(refusal)) = refused else {
            panic!("{refused:?}")
        };
        assert_eq!(refusal.reason, Reason::BadFrame);
    }
}

#[test]
fn a02_of_a_process_that_has_ended_nothing_is_told() {
    for who in everybody() {
        let world = World::new(who);
        let mut process = Command::new("/bin/true").spawn().unwrap();
        let pidfd = pidfd_open(Pid::from_child(&process), PidfdFlags::empty()).unwrap();
        wait(pidfd.as_fd());
        // Once while its number is still taken, once when it is free.
        for _ in 0..2 {
            let refused = world.client().measure(pidfd.as_fd());
            let Err(WardenError::Refused(refusal)) = refused else {
                panic!("{refused:?}")
            };
            assert_eq!(refusal.reason, Reason::Gone);
            process.wait().unwrap();
        }
    }
}

#[test]
fn a90_a_process_that_forks_into_further_namespaces_is_still_seen_below_its_module() {
    for who in everybody() {
        let world = World::new(who);
        let script = "unshare --user --pid --fork --mount --propagation unchanged sh -c 'echo up; sleep 1000'";
        world.grant("m", script, "");
        let mut running = world.start("m", &[]).unwrap();
        assert_eq!(running.line(), "up", "{who:?}");
        let inner = world::child(world::child(running.program_pid()));
        let facts = &running.running.facts;
        let measured = world.client().measure(world::pidfd(inner).as_fd()).unwrap();
        let own = fs::metadata("/proc/self/ns/pid").unwrap().ino();
        assert_eq!(measured.pid_namespaces[1..], [facts.pid_ns, own], "{who:?}");
        assert_ne!(measured.mount_ns, facts.mount_ns);
        if who == Who::Root {
            assert_eq!(measured.cgroup, facts.cgroup);
        }
    }
}

#[test]
fn a02_a_channel_whose_connector_has_ended_is_closed() {
    for who in everybody() {
        let world = World::new(who);
        let socket = seqpacket(SocketFlags::CLOEXEC).unwrap();
        // Another process connects this very socket and ends; what it connected stays here.
        let connector = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "connector", "--ignored"])
            .env("WARDEN_SOCKET", world.socket())
            .stdin(socket.try_clone().unwrap())
            .output()
            .unwrap();
        assert!(connector.status.success(), "{connector:?}");
        let frame = Request::List { after: None }.encode().unwrap();
        let answered = send(socket.as_fd(), &frame, &[]).and_then(|()| receive(socket.as_fd()));
        assert!(
            answered.is_err() || answered.unwrap().frame.is_empty(),
            "{who:?}"
        );
        assert!(world.client().list().unwrap().is_empty());
    }
}

#[test]
#[ignore = "the other process of the test above, not a test"]
fn connector() {
    let path = std::env::var("WARDEN_SOCKET").unwrap();
    let connect = |to: &_| Ok(rustix::net::connect(std::io::stdin(), to)?);
    with_address(Path::new(&path), connect).unwrap();
}

#[test]
fn the_example_grants_are_in_form() {
    let examples = concat!(env!("CARGO_MANIFEST_DIR"), "/../../policy/grants");
    if !fs::exists(examples).unwrap() {
        println!("SKIPPED: no source tree here");
        return;
    }
    for example in fs::read_dir(examples).unwrap() {
        let path = example.unwrap().path();
        let grant: Result<Grant, _> = toml::from_str(&fs::read_to_string(&path).unwrap());
        let grant = grant.unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        grant
            .check_ids(Standing::Root {
                minimum_uid: 60_000,
            })
            .unwrap();
    }
}

#[test]
fn a_stopped_module_gets_its_grace_and_then_no_more() {
    for who in everybody() {
        let world = World::new(who);
        world.grant(
            "polite",
            "trap 'exit 7' TERM; echo up; sleep 1000 & wait",
            "",
        );
        world.grant("deaf", "trap '' TERM; echo up; sleep 1000", "");
        world.grant("long", "echo up; sleep 1000", "");
        let cases = [
            ("polite", 600_000, End::Code(7)),
            ("deaf", 0, End::Signal(9)),
            ("long", 600_000, End::Signal(15)),
        ];
        for (name, grace, end) in cases {
            let mut running = world.start(name, &[]).unwrap();
            assert_eq!(running.line(), "up");
            let mut client = world.client();
            assert_eq!(client.status(&module(name)).unwrap(), State::Running);
            assert_eq!(world.refusal(name), Reason::AlreadyRunning);
            client.stop(&module(name), grace).unwrap();
            running.wait();
            assert_eq!(
                client.status(&module(name)).unwrap(),
                State::Exited(end),
                "{who:?} {name}"
            );
            let Err(WardenError::Refused(refusal)) = client.stop(&module(name), 0) else {
                panic!()
            };
            assert_eq!(refusal.reason, Reason::NotRunning);
        }
        assert_eq!(
            world.client().status(&module("never")).unwrap(),
            State::Unknown
        );
    }
}

#[test]
fn descendants_end_with_their_module() {
    for who in everybody() {
        let world = World::new(who);
        world.grant("m", "setsid sleep 1000 & echo left; exit 3", "");
        // Reads to the end of the pipe, which the descendant holds open.
        assert_eq!(world.start("m", &[]).unwrap().all(), "left\n", "{who:?}");
    }
}

#[test]
fn a_killed_warden_leaves_no_process_and_the_next_removes_its_cgroups() {
    for who in everybody() {
        let mut world = World::new(who);
        world.grant(
            "m",
            "trap '' TERM; setsid sleep 1000 & echo up; sleep 1000",
            "",
        );
        let mut running = world.start("m", &[]).unwrap();
        assert_eq!(running.line(), "up");
        let (cgroup, epoch) = (
            running.running.facts.cgroup.clone(),
            running.running.facts.epoch,
        );
        world.kill();
        world.restart();
        running.wait();
        assert_eq!(running.all(), "", "{who:?}");
        assert_eq!(world.client().status(&module("m")).unwrap(), State::Unknown);
        assert!(world.client().list().unwrap().is_empty());
        let Some(cgroup) = cgroup else { continue };
        let mounts = fs::read_to_string("/proc/mounts").unwrap();
        let at = mounts
            .lines()
            .find(|line| line.contains(" cgroup2 "))
            .unwrap();
        let at = at.split(' ').nth(1).unwrap().to_owned();
        assert!(fs::exists(format!("{at}/{}", world.cgroup_parent)).unwrap());
        assert!(!fs::exists(format!("{at}{}", cgroup.path)).unwrap());
        let again = world.start("m", &[]).unwrap().running.facts;
        assert_ne!(again.epoch, epoch);
        assert_ne!(again.cgroup.unwrap().id, cgroup.id);
        let parent = format!("{at}/{}", world.cgroup_parent);
        drop(world);
        assert!(!fs::exists(parent).unwrap());
    }
}

#[test]
fn warden_and_its_modules_end_with_the_parent_it_was_bound_to() {
    for who in everybody() {
        let mut world = World::new(who);
        world.kill();
        world.restart_below_a_shell();
        world.grant("m", "trap '' TERM; echo up; sleep 1000", "");
        let mut running = world.start("m", &[]).unwrap();
        assert_eq!(running.line(), "up");
        let warden = world::pidfd(world::child(world.process.id()));
        world.kill();
        wait(warden.as_fd());
        assert_eq!(running.all(), "", "{who:?}");
        // The next one removes what is left.
        world.restart();
    }
}

#[test]
fn a_new_channel_lists_all_modules_with_their_processes() {
    for who in everybody() {
        let world = World::new(who);
        let names: Vec<_> = (10..28).map(|n| format!("m{n}")).collect();
        let started: Vec<_> = names
            .iter()
            .map(|name| {
                world.grant(name, "echo up; sleep 1000", "");
                world.start(name, &[]).unwrap()
            })
            .collect();
        let listed = world.client().list().unwrap();
        assert_eq!(listed.len(), names.len(), "{who:?}");
        for (listed, started) in listed.iter().zip(&started) {
            assert_eq!(listed.facts, started.running.facts);
        }
        world.client().kill(&module("m12")).unwrap();
        wait(listed[2].pidfd.as_fd());
        assert_eq!(world.client().list().unwrap().len(), names.len() - 1);
    }
}

#[test]
fn a_caller_whose_uid_is_not_configured_is_not_heard() {
    for who in everybody() {
        let world = World::allowing(who, vec![4_000_000, 4_000_001]);
        let error = world.client().list().unwrap_err();
        assert!(
            !matches!(error, WardenError::Refused(_)),
            "{who:?} {error:?}"
        );
    }
}

#[test]
fn a_socket_with_one_caller_is_that_callers_alone() {
    for who in everybody() {
        let world = World::new(who);
        let socket = fs::metadata(world.socket());
        if who == Who::User(65_533) {
            // Only root can give a socket away, so root must be reached by another mode there.
            continue;
        }
        let socket = socket.unwrap();
        assert_eq!(socket.mode() & 0o777, 0o600);
        assert_eq!(socket.uid(), rustix::process::geteuid().as_raw());
    }
}

#[test]
fn a60_three_bad_frames_close_the_channel() {
    for who in everybody() {
        let world = World::new(who);
        let good = Request::List { after: None }.encode().unwrap();
        let null = fs::File::open("/dev/null").unwrap();
        let bad: [(Vec<u8>, usize); 6] = [
            (b"{}".to_vec(), 0),
            (vec![VERSION + 1, 5, 1, 0, 0], 0),
            (vec![VERSION, 0x77, 0, 0], 0),
            (good.iter().copied().chain([0]).collect(), 0),
            (good.clone(), 1),
            (vec![VERSION; MAX_BODY + 100], 0),
        ];
        for three in bad.chunks(3) {
            let socket = seqpacket(SocketFlags::CLOEXEC).unwrap();
            with_address(&world.socket(), |to| Ok(rustix::net::connect(&socket, to)?)).unwrap();
            let socket = socket.as_fd();
            for (nth, (frame, descriptors)) in three.iter().enumerate() {
                send(socket, &good, &[]).unwrap();
                let reply = Reply::decode(&receive(socket).unwrap().frame).unwrap();
                assert!(matches!(reply, Reply::Listed { .. }), "{who:?}");
                send(socket, frame, &vec![null.as_fd(); *descriptors]).unwrap();
                let reply = receive(socket).unwrap().frame;
                if nth < 2 {
                    let Reply::Refused(refusal) = Reply::decode(&reply).unwrap() else {
                        panic!()
                    };
                    assert_eq!(refusal.reason, Reason::BadFrame);
                } else {
                    assert!(reply.is_empty());
                }
            }
        }
        assert!(world.client().list().unwrap().is_empty());
    }
}

#[test]
fn a_second_warden_at_the_same_socket_is_refused() {
    for who in everybody() {
        let world = World::new(who);
        let mut command = match who {
            Who::User(65_533) => {
                let mut command = Command::new("setpriv");
                command.args(["--reuid=65533", "--regid=65533", "--clear-groups"]);
                command.arg(world.dir.join("warden"));
                command
            }
            _ => Command::new(world.dir.join("warden")),
        };
        let second = command
            .arg("--config")
            .arg(world.dir.join("warden.toml"))
            .output()
            .unwrap();
        let text = String::from_utf8(second.stderr).unwrap();
        assert!(
            !second.status.success() && text.contains("is in use"),
            "{who:?} {text}"
        );
        assert!(world.client().list().unwrap().is_empty());
    }
}

#[test]
fn root_keeps_only_the_listed_capabilities() {
    if !rustix::process::geteuid().is_root() {
        println!("SKIPPED: needs root");
        return;
    }
    let world = World::new(Who::Root);
    // Answered only after the powers are gone.
    world.client().list().unwrap();
    let status = fs::read_to_string(format!("/proc/{}/status", world.process.id())).unwrap();
    let set = |key: &str| {
        let line = status
            .lines()
            .find_map(|line| line.strip_prefix(key))
            .unwrap();
        u64::from_str_radix(line.trim(), 16).unwrap()
    };
    let now = warden::privileges::KEPT
        .iter()
        .fold(0, |all, (one, _)| all | one.bits());
    let kept = now | warden::privileges::AT_THE_END.0.bits();
    assert_eq!(
        (set("CapEff:"), set("CapPrm:"), set("CapBnd:")),
        (now, kept, kept)
    );
    assert_eq!(
        (set("CapInh:"), set("CapAmb:"), set("NoNewPrivs:")),
        (0, 0, 1)
    );
    assert_eq!(set("Threads:"), 1);
}
