//! Virtio devices: what their commands say, and their QMP twins.

mod common;

use common::{VIRTIO, reset};
use monitor::{Hmp, Qmp};
use serde_json::{Value, json};

fn hmp(line: &str) -> (String, Vec<String>) {
    let mut machine = reset();
    let mut hmp = Hmp::new("");
    hmp.open(&machine);
    let out = hmp.feed(&mut machine, format!("{line}\n").as_bytes());
    let text = String::from_utf8(out).unwrap().replace('\r', "");
    let echo = text.find('\n').map_or(0, |end| end + 1);
    (text[echo..].to_owned(), machine.log)
}

#[test]
fn devices_and_their_queues_are_shown() {
    assert_eq!(hmp("info virtio").0, format!("{VIRTIO} [virtio-blk]\n"));
    let status = hmp(&format!("info virtio-status {VIRTIO}")).0;
    for line in [
        "  device_id:               2\n",
        "        ACKNOWLEDGE,\n        DRIVER\n",
        "VIRTIO_BLK_F_FLUSH\n",
    ] {
        assert!(status.contains(line), "{status}");
    }
    let queue = hmp(&format!("info virtio-queue-status {VIRTIO} 1")).0;
    for line in ["  queue_index:          1\n", "    avail:        0x0000000000001800\n"] {
        assert!(queue.contains(line), "{queue}");
    }
}

#[test]
fn what_is_not_there_is_named() {
    for (line, expected) in [
        ("info virtio-status /x", "Error: Path /x is not a VirtIO device\n"),
        ("info virtio-queue-status /x 0", "Error: Path /x is not a VirtIO device\n"),
        (&format!("info virtio-queue-status {VIRTIO} 2"), "Error: Invalid virtqueue number 2\n"),
    ] {
        assert_eq!(hmp(line).0, expected);
    }
}

#[test]
fn the_balloon_counts_in_mebibytes_and_qmp_in_bytes() {
    assert_eq!(hmp("info balloon").0, "balloon: actual=96 free_mem=1000\n");
    assert_eq!(hmp("balloon 64").1, ["balloon 67108864"]);
    assert!(hmp("balloon 0").1.is_empty());
    assert!(hmp("balloon 0x7fffffffffffffff").1.is_empty());
    let mut machine = reset();
    let mut qmp = Qmp::new();
    qmp.open(&machine);
    let mut ask = |command: Value| {
        let out = qmp.feed(&mut machine, command.to_string().as_bytes());
        let text = String::from_utf8(out).unwrap();
        serde_json::from_str::<Value>(text.trim()).unwrap()
    };
    ask(json!({ "execute": "qmp_capabilities" }));
    let answer = ask(json!({ "execute": "query-balloon" }));
    assert_eq!(answer["return"], json!({ "actual": 96 << 20 }));
    ask(json!({ "execute": "balloon", "arguments": { "value": 123 } }));
    let status =
        ask(json!({ "execute": "x-query-virtio-status", "arguments": { "path": VIRTIO } }));
    assert_eq!(status["return"]["status"]["statuses"], json!(["ACKNOWLEDGE", "DRIVER"]));
    assert_eq!(machine.log, ["balloon 123"]);
}
