//! QMP sessions.

mod common;

use std::time::Duration;

use common::Fake;
use monitor::state::RunState;
use monitor::{Cause, Event, PanicAction, Qmp, Type, commands};
use serde_json::{Value, json};

struct Client {
    machine: Fake,
    qmp: Qmp,
}

impl Client {
    /// A client that has ended the negotiation.
    fn new(machine: Fake) -> Self {
        let mut qmp = Qmp::new();
        qmp.open(&machine);
        let mut client = Self { machine, qmp };
        assert_eq!(client.sends(r#"{"execute":"qmp_capabilities"}"#), [json!({"return": {}})]);
        client
    }

    fn sends(&mut self, text: &str) -> Vec<Value> {
        let out = self.qmp.feed(&mut self.machine, text.as_bytes());
        let out = String::from_utf8(out).unwrap();
        out.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    fn asks(&mut self, text: &str) -> Value {
        let mut answers = self.sends(text);
        assert_eq!(answers.len(), 1, "{text}");
        answers.remove(0)
    }

    fn error(&mut self, text: &str) -> (String, String) {
        let answer = self.asks(text);
        let error = &answer["error"];
        assert_eq!(answer.get("return"), None, "{text}");
        let word = |name: &str| error[name].as_str().unwrap().to_owned();
        (word("class"), word("desc"))
    }
}

#[test]
fn the_greeting_opens_the_negotiation() {
    let mut machine = common::reset();
    let mut qmp = Qmp::new();
    assert_eq!(
        String::from_utf8(qmp.open(&machine)).unwrap(),
        "{\"QMP\": {\"version\": {\"qemu\": {\"major\": 1, \"minor\": 2, \"micro\": 3}, \"package\": \"\"}, \
         \"capabilities\": []}}\r\n"
    );
    let early = qmp.feed(&mut machine, br#"{"execute":"stop"}"#);
    assert_eq!(
        String::from_utf8(early).unwrap(),
        "{\"error\": {\"class\": \"CommandNotFound\", \"desc\": \
         \"Expecting capabilities negotiation with 'qmp_capabilities'\"}}\r\n"
    );
    assert_eq!(qmp.event(&Event::Stop, Duration::ZERO), None);
    qmp.feed(&mut machine, br#"{"execute":"qmp_capabilities","arguments":{"enable":[]}}"#);
    assert!(qmp.event(&Event::Stop, Duration::ZERO).is_some());
    // A new client begins anew.
    qmp.open(&machine);
    assert_eq!(qmp.event(&Event::Stop, Duration::ZERO), None);
    assert!(machine.log.is_empty());
}

#[test]
fn queries_answer_with_qemus_members() {
    let mut client = Client::new(common::reset());
    for (command, answer) in [
        ("query-status", json!({"running": false, "singlestep": false, "status": "prelaunch"})),
        ("query-name", json!({"name": "golden"})),
        ("query-uuid", json!({"UUID": "00000000-0000-0000-0000-000000000000"})),
        ("query-version", json!({"qemu": {"major": 1, "minor": 2, "micro": 3}, "package": ""})),
        ("query-kvm", json!({"enabled": false, "present": true})),
        (
            "query-chardev",
            json!([
                {"frontend-open": true, "filename": "vc", "label": "parallel0"},
                {"frontend-open": true, "filename": "stdio", "label": "compat_monitor0"},
            ]),
        ),
    ] {
        let asked = json!({ "execute": command }).to_string();
        assert_eq!(client.asks(&asked), json!({ "return": answer }));
    }
    let cpus = client.asks(r#"{"execute":"query-cpus-fast"}"#);
    assert_eq!(
        cpus["return"][1],
        json!({
            "thread-id": 1001, "props": {"core-id": 1, "thread-id": 0, "socket-id": 0},
            "qom-path": "/machine/unattached/device[1]", "cpu-index": 1, "target": "x86_64",
        })
    );
}

#[test]
fn commands_act_and_answer_with_nothing() {
    let mut client = Client::new(common::reset());
    for command in ["cont", "stop", "system_reset", "system_powerdown", "inject-nmi"] {
        let asked = json!({ "execute": command }).to_string();
        assert_eq!(client.asks(&asked), json!({ "return": {} }));
    }
    let saved =
        r#"{"execute":"memsave","arguments":{"val":65536,"size":4,"filename":"f","cpu-index":1}}"#;
    assert_eq!(client.asks(saved), json!({ "return": {} }));
    assert_eq!(client.machine.files.borrow()["f"], [0x0b, 0x30, 0x55, 0x7a]);
    // What comes behind `quit` is not looked at.
    let both = r#"{"execute":"quit"}{"execute":"stop"}"#;
    assert_eq!(client.sends(both), [json!({ "return": {} })]);
    assert!(client.qmp.finished());
    assert_eq!(
        client.machine.log,
        ["cont", "stop", "system_reset", "system_powerdown", "nmi", "quit"]
    );
}

fn error(class: &str, desc: &str) -> Value {
    json!({ "error": { "class": class, "desc": desc } })
}

#[test]
fn a_device_is_described_by_whatever_members_it_has() {
    let mut client = Client::new(common::reset());
    for (arguments, answer) in [
        (
            json!({"driver": "d", "id": "a,b", "addr": 7, "on": true, "x": {"y": {"z": false}}}),
            json!({ "return": {} }),
        ),
        (json!({"driver": "d", "list": ["a", {"str": "b"}]}), json!({ "return": {} })),
        (json!({"id": "q"}), error("GenericError", "Parameter 'driver' is missing")),
        (
            json!({"driver": "d", "list": null}),
            error(
                "GenericError",
                "Invalid parameter type for 'list', expected: a string, a number, a boolean or an object",
            ),
        ),
    ] {
        let asked = json!({ "execute": "device_add", "arguments": arguments }).to_string();
        assert_eq!(client.asks(&asked), answer);
    }
    assert_eq!(
        client.asks(r#"{"execute":"device_del","arguments":{"id":"nope"}}"#),
        error("DeviceNotFound", "Device 'nope' not found")
    );
    assert_eq!(
        client.machine.log,
        ["device_add d,addr=7,id=a,,b,on=on,x.y.z=off", "device_add d,list=a,list=b"]
    );
    // What is gone is told to those who listen.
    let event = client.qmp.event(&Event::DeviceDeleted(Some("q".into())), Duration::ZERO).unwrap();
    let event: Value = serde_json::from_slice(&event).unwrap();
    assert_eq!(event["event"], "DEVICE_DELETED");
    assert_eq!(event["data"], json!({"device": "q", "path": "/machine/peripheral/q"}));
}

/// QEMU 7.2's answer to `query-pci` of the machine in `golden/pci.txt`, one function of it.
#[test]
fn query_pci_has_qemus_members() {
    let mut machine = common::reset();
    machine.status = RunState::Running;
    let answer = Client::new(machine).asks(r#"{"execute":"query-pci"}"#);
    assert_eq!(
        answer["return"][0]["devices"][4],
        json!({
            "irq_pin": 0, "bus": 0, "qdev_id": "", "slot": 3, "class_info": {"class": 255},
            "id": {"device": 5, "subsystem-vendor": 6900, "vendor": 6966, "subsystem": 4352},
            "function": 0, "regions": [
                {
                    "prefetch": false, "mem_type_64": false, "bar": 0, "size": 4096,
                    "address": 0xfeb0_0000_u32, "type": "memory",
                },
                {"bar": 1, "size": 256, "address": 49152, "type": "io"},
                {
                    "prefetch": true, "mem_type_64": true, "bar": 2, "size": 4096,
                    "address": 0xfebf_f000_u32, "type": "memory",
                },
            ],
        })
    );
}

#[test]
fn the_human_monitor_can_be_asked() {
    let mut client = Client::new(common::reset());
    let mut ask = |line: &str| {
        let arguments = json!({ "command-line": line, "cpu-index": 1 });
        let asked = json!({ "execute": "human-monitor-command", "arguments": arguments });
        client.asks(&asked.to_string())["return"].as_str().unwrap().to_owned()
    };
    assert_eq!(ask("info status"), "VM status: paused (prelaunch)\r\n");
    assert_eq!(ask("foo"), "unknown command: 'foo'\r\n");
    assert_eq!(ask(""), "");
    assert_eq!(
        ask("p 1+"),
        "unexpected end of expression\r\nTry \"help p\" for more information\r\n"
    );
    assert!(ask("info registers").starts_with("\r\nCPU#1\r\nEAX=00000000 "));
    assert_eq!(ask("info cpus"), "  CPU #0: thread_id=1000\r\n* CPU #1: thread_id=1001\r\n");
}

#[test]
fn errors_come_in_qemus_words() {
    let mut client = Client::new(common::reset());
    for (asked, desc) in [
        (r#"{"execute":"cont","arguments":{"x":1}}"#, "Parameter 'x' is unexpected"),
        (
            r#"{"execute":"memsave","arguments":{"val":0,"size":16}}"#,
            "Parameter 'filename' is missing",
        ),
        (
            r#"{"execute":"memsave","arguments":{"val":"0","size":16,"filename":"a"}}"#,
            "Invalid parameter type for 'val', expected: integer",
        ),
        (
            r#"{"execute":"memsave","arguments":{"val":0,"size":1.5,"filename":"a"}}"#,
            "Invalid parameter type for 'size', expected: integer",
        ),
        (
            r#"{"execute":"memsave","arguments":{"val":0,"size":-16,"filename":"a"}}"#,
            "Parameter 'size' expects a number of bytes",
        ),
        (
            r#"{"execute":"memsave","arguments":{"val":0,"size":1,"filename":0}}"#,
            "Invalid parameter type for 'filename', expected: string",
        ),
        (
            r#"{"execute":"memsave","arguments":{"val":0,"size":16,"filename":"/nonexist/a"}}"#,
            "Could not open '/nonexist/a': No such file or directory",
        ),
        (
            r#"{"execute":"memsave","arguments":{"val":0,"size":16,"filename":"a","cpu-index":7}}"#,
            "Parameter 'cpu-index' expects a CPU number",
        ),
        (
            r#"{"execute":"memsave","arguments":{"val":17592186044416,"size":16,"filename":"a"}}"#,
            "Invalid addr 0x0000100000000000/size 16 specified",
        ),
        (r#"{"execute":"human-monitor-command"}"#, "Parameter 'command-line' is missing"),
        (r#"{"execute":5}"#, "QMP input member 'execute' must be a string"),
        (r#"{"exec":"x"}"#, "QMP input member 'exec' is unexpected"),
        (r#"{"execute":"query-name","foo":1}"#, "QMP input member 'foo' is unexpected"),
        (r#"{"exec-oob":"query-name"}"#, "QMP input member 'exec-oob' is unexpected"),
        (
            r#"{"execute":"query-name","arguments":[]}"#,
            "QMP input member 'arguments' must be an object",
        ),
        ("{}", "QMP input lacks member 'execute'"),
        ("[1]", "QMP input must be a JSON object"),
        ("5 ", "QMP input must be a JSON object"),
        (r#""a""#, "QMP input must be a JSON object"),
    ] {
        assert_eq!(client.error(asked), ("GenericError".to_owned(), desc.to_owned()), "{asked}");
    }
    for (asked, desc) in [
        (r#"{"execute":"foo"}"#, "The command foo has not been found"),
        (
            r#"{"execute":"qmp_capabilities"}"#,
            "Capabilities negotiation is already complete, command ignored",
        ),
    ] {
        assert_eq!(client.error(asked), ("CommandNotFound".to_owned(), desc.to_owned()), "{asked}");
    }
}

#[test]
fn broken_json_is_an_error_and_the_next_line_is_served() {
    let mut client = Client::new(common::reset());
    for broken in
        ["nonsense", "}", "{\"execute\":}", "{\"execute\": \"stop\"]", "\"x", "@", "\u{1}"]
    {
        let answers = client.sends(&format!("{broken}\n{{\"execute\":\"query-name\",\"id\":7}}\n"));
        assert_eq!(answers.len(), 2, "{broken}");
        let desc = answers[0]["error"]["desc"].as_str().unwrap();
        assert!(desc.starts_with("JSON parse error, "), "{desc}");
        assert_eq!(answers[1], json!({ "return": {"name": "golden"}, "id": 7 }));
    }
}

#[test]
fn ids_come_back_whatever_they_are() {
    let mut client = Client::new(common::reset());
    for id in [
        json!(1),
        json!(null),
        json!("é😀\n"),
        json!({"a": [1, 2]}),
        json!(1.5),
        json!(true),
        json!(u64::MAX),
    ] {
        let answer = client.asks(&json!({ "execute": "query-name", "id": id }).to_string());
        assert_eq!(answer, json!({ "return": {"name": "golden"}, "id": id }));
        let answer = client.asks(&json!({ "execute": "foo", "id": id }).to_string());
        assert_eq!(answer["id"], id);
    }
    let answers = client.sends("  {'execute':\n\t'query-name' , 'id' : 4}{\"execute\":\"stop\"} ");
    assert_eq!(
        answers,
        [json!({ "return": {"name": "golden"}, "id": 4 }), json!({ "return": {} })]
    );
}

#[test]
fn events_are_stamped() {
    let client = Client::new(common::reset());
    let time = Duration::new(1_795_450_404, 710_186_000);
    let event = client.qmp.event(&Event::Reset(Cause::HostQmpSystemReset), time).unwrap();
    assert_eq!(
        serde_json::from_slice::<Value>(&event).unwrap(),
        json!({
            "timestamp": {"seconds": 1_795_450_404, "microseconds": 710_186}, "event": "RESET",
            "data": {"guest": false, "reason": "host-qmp-system-reset"},
        })
    );
    for (event, name, data) in [
        (Event::Stop, "STOP", None),
        (Event::Resume, "RESUME", None),
        (Event::Powerdown, "POWERDOWN", None),
        (
            Event::Shutdown(Cause::GuestShutdown),
            "SHUTDOWN",
            Some(json!({"guest": true, "reason": "guest-shutdown"})),
        ),
        (
            Event::GuestPanicked(PanicAction::Pause),
            "GUEST_PANICKED",
            Some(json!({"action": "pause"})),
        ),
    ] {
        let sent = client.qmp.event(&event, time).unwrap();
        let sent: Value = serde_json::from_slice(&sent).unwrap();
        assert_eq!((&sent["event"], sent.get("data")), (&json!(name), data.as_ref()));
    }
}

/// Whether `value` is of type `ty`.
fn conforms(value: &Value, ty: Type) -> bool {
    match ty {
        Type::Nothing => *value == json!({}),
        Type::Open => true,
        Type::Int => value.is_i64() || value.is_u64(),
        Type::Str => value.is_string(),
        Type::Bool => value.is_boolean(),
        Type::Enum(kind) => value.as_str().is_some_and(|value| kind.values.contains(&value)),
        Type::Array(element) => {
            value.as_array().is_some_and(|all| all.iter().all(|value| conforms(value, *element)))
        }
        Type::Object(kind) => value.as_object().is_some_and(|object| {
            let known = |name: &String| kind.members.iter().any(|member| member.name == name);
            object.keys().all(known)
                && kind.members.iter().all(|member| match object.get(member.name) {
                    Some(value) => conforms(value, member.ty),
                    None => member.optional,
                })
        }),
    }
}

#[test]
fn replies_are_of_the_types_that_the_schema_names() {
    let mut client = Client::new(common::reset());
    for form in commands().filter_map(|command| command.qmp.as_ref()) {
        if matches!(form.name, "quit" | "qmp_capabilities" | "query-qmp-schema") {
            continue;
        }
        let arguments = match form.name {
            "memsave" | "pmemsave" => json!({ "val": 0, "size": 1, "filename": "f" }),
            "device_del" | "netdev_del" => json!({ "id": "d" }),
            "netdev_add" => json!({ "type": "user", "id": "d" }),
            "set_link" => json!({ "name": "d", "up": true }),
            "hostfwd-add" => json!({ "rule": "tcp::1-:2" }),
            "hostfwd-remove" => json!({ "rule": "tcp::1" }),
            "balloon" => json!({ "value": 1 }),
            "block_resize" => json!({ "device": "virtio0", "size": 512 }),
            "block_set_io_throttle" => json!({
                "device": "virtio0", "bps": 0, "bps_rd": 0, "bps_wr": 0,
                "iops": 0, "iops_rd": 0, "iops_wr": 0
            }),
            "blockdev-change-medium" => json!({ "id": "virtio0", "filename": "f" }),
            "blockdev-del" => json!({ "node-name": "n" }),
            "eject" => json!({ "device": "virtio0" }),
            "x-query-virtio-status" => json!({ "path": common::VIRTIO }),
            "x-query-virtio-queue-status" => json!({ "path": common::VIRTIO, "queue": 0 }),
            "dump-guest-memory" => json!({ "paging": false, "protocol": "file:/tmp/core" }),
            "device_add" => json!({ "driver": "d" }),
            "human-monitor-command" => json!({ "command-line": "info status" }),
            _ => json!({}),
        };
        let asked = json!({ "execute": form.name, "arguments": arguments });
        let answer = client.asks(&asked.to_string());
        assert!(conforms(&answer["return"], form.returns), "{}: {answer}", form.name);
    }
}

#[test]
fn the_schema_is_whole() {
    let mut client = Client::new(common::reset());
    let schema = client.asks(r#"{"execute":"query-qmp-schema"}"#);
    let entries = schema["return"].as_array().unwrap();
    let names = |entry: &Value| entry["name"].as_str().unwrap().to_owned();
    let all: Vec<_> = entries.iter().map(names).collect();
    let refers = |to: &Value| all.iter().any(|name| Some(name.as_str()) == to.as_str());
    for entry in entries {
        match entry["meta-type"].as_str().unwrap() {
            "command" => assert!(refers(&entry["arg-type"]) && refers(&entry["ret-type"])),
            "event" => assert!(refers(&entry["arg-type"])),
            "array" => assert!(refers(&entry["element-type"])),
            "object" => {
                for member in entry["members"].as_array().unwrap() {
                    assert!(refers(&member["type"]), "{entry}");
                }
            }
            "enum" | "builtin" => {}
            other => panic!("{other}"),
        }
    }
    let listed = client.asks(r#"{"execute":"query-commands"}"#);
    for command in listed["return"].as_array().unwrap() {
        assert!(
            entries.iter().any(|entry| {
                entry["meta-type"] == "command" && entry["name"] == command["name"]
            })
        );
    }
    let states = entries.iter().find(|entry| entry["name"] == "RunState").unwrap();
    let known: Vec<_> = monitor::state::RunState::ALL.iter().map(|state| state.name()).collect();
    assert_eq!(states["values"], json!(known));
}
