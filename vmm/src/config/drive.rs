//! `--drive`, `--blockdev` and `--snapshot`, in QEMU's spelling.

use std::collections::HashMap;
use std::path::PathBuf;

use devices::block::{Aio, CacheMode, DriveOptions, Format, ImageOptions, Limits, OnError};
use serde_json::Value;

use super::ConfigError;
use super::props::{Props, parse_size};

/// Who uses a drive: `if=`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Interface {
    /// A virtio-blk device that is made for it.
    Virtio,
    /// Whoever names it.
    None,
}

/// A drive to make.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DriveSpec {
    /// Who uses it.
    pub interface: Interface,
    /// What it is.
    pub options: DriveOptions,
}

/// `cache=`.
const CACHES: &[(&str, CacheMode)] = &[
    ("writeback", CacheMode { direct: false, no_flush: false, write_through: false }),
    ("none", CacheMode { direct: true, no_flush: false, write_through: false }),
    ("writethrough", CacheMode { direct: false, no_flush: false, write_through: true }),
    ("directsync", CacheMode { direct: true, no_flush: false, write_through: true }),
    ("unsafe", CacheMode { direct: false, no_flush: true, write_through: false }),
];
const AIOS: &[(&str, Aio)] = &[("threads", Aio::Threads), ("io_uring", Aio::IoUring)];
const DISCARDS: &[(&str, bool)] =
    &[("ignore", false), ("off", false), ("unmap", true), ("on", true)];
const FORMATS: &[(&str, Format)] = &[("raw", Format::Raw), ("qcow2", Format::Qcow2)];
const WERRORS: &[(&str, OnError)] = &[
    ("report", OnError::Report),
    ("ignore", OnError::Ignore),
    ("stop", OnError::Stop),
    ("enospc", OnError::Enospc),
];
const RERRORS: &[(&str, OnError)] =
    &[("report", OnError::Report), ("ignore", OnError::Ignore), ("stop", OnError::Stop)];
const DETECT: &[(&str, bool)] = &[("off", false), ("on", true), ("unmap", true)];

/// A null disk's size if none is given.
const NULL_SIZE: u64 = 1 << 30;

impl DriveSpec {
    /// Reads `file=,format=,...`. `number` counts the drives of the same interface.
    ///
    /// # Errors
    /// Names the nearest known key or value.
    pub fn parse(text: &str, number: impl FnOnce(Interface) -> usize) -> Result<Self, ConfigError> {
        let mut props = Props::with_implied_key("--drive", text, "file");
        let interfaces = &[("virtio", Interface::Virtio), ("none", Interface::None)];
        let interface = props.take_choice("if", interfaces)?.unwrap_or(Interface::Virtio);
        let number = match props.take_number("index", 0..=0xFFFF)? {
            Some(index) => index as usize,
            None => number(interface),
        };
        let word = if interface == Interface::Virtio { "virtio" } else { "none" };
        let id = props.take("id").unwrap_or_else(|| format!("{word}{number}"));
        if props.take_choice("media", &[("disk", ()), ("cdrom", ())])?.is_some()
            && text.contains("media=cdrom")
        {
            return Err(ConfigError::Conflict(
                "--drive media=cdrom: vmm has no CD-ROM drive: give it as a disk with readonly=on"
                    .into(),
            ));
        }
        let image = image(&mut props)?;
        let mut options = DriveOptions::new(id, image);
        options.werror = props.take_choice("werror", WERRORS)?.unwrap_or(OnError::Enospc);
        options.rerror = props.take_choice("rerror", RERRORS)?.unwrap_or(OnError::Report);
        options.limits = limits(&mut props)?;
        options.serial = serial(&mut props)?.unwrap_or_default();
        options.detect_zeroes = props.take_choice("detect-zeroes", DETECT)?.unwrap_or(false);
        props.finish()?;
        options.limits.check().map_err(|why| ConfigError::Conflict(format!("--drive: {why}")))?;
        Ok(Self { interface, options })
    }
}

/// `serial=`, which a guest reads as 20 bytes.
pub(super) fn serial(props: &mut Props) -> Result<Option<String>, ConfigError> {
    match props.take("serial") {
        Some(text) if text.len() > 20 => {
            Err(props.bad("serial", &text, "a text of up to 20 bytes"))
        }
        other => Ok(other),
    }
}

/// `werror=` and `rerror=`, where they are given.
pub(super) fn policies(
    props: &mut Props,
) -> Result<(Option<OnError>, Option<OnError>), ConfigError> {
    Ok((props.take_choice("rerror", RERRORS)?, props.take_choice("werror", WERRORS)?))
}

fn image(props: &mut Props) -> Result<Option<ImageOptions>, ConfigError> {
    let file = props.take("file");
    let format = match props.take_choice("format", FORMATS)? {
        Some(format) => Some(format),
        None => props.take_choice("driver", FORMATS)?,
    };
    let readonly = match props.take_switch("readonly")? {
        Some(on) => Some(on),
        None => props.take_switch("read-only")?,
    };
    let mut cache = props.take_choice("cache", CACHES)?.unwrap_or_default();
    cache_keys(props, &mut cache)?;
    let image = ImageOptions {
        file: PathBuf::new(),
        format,
        readonly: readonly.unwrap_or(false),
        cache,
        aio: props.take_choice("aio", AIOS)?.unwrap_or_default(),
        discard: props.take_choice("discard", DISCARDS)?.unwrap_or(false),
        snapshot: props.take_switch("snapshot")?.unwrap_or(false),
        locking: locking(props, "locking")? && locking(props, "file.locking")?,
        null: None,
    };
    Ok(match file.as_deref() {
        None | Some("") => None,
        Some("null-co://" | "null-aio://") => Some(ImageOptions { null: Some(NULL_SIZE), ..image }),
        Some(path) => {
            let file = path.strip_prefix("file:").unwrap_or(path).into();
            Some(ImageOptions { file, ..image })
        }
    })
}

fn cache_keys(props: &mut Props, cache: &mut CacheMode) -> Result<(), ConfigError> {
    if let Some(on) = props.take_switch("cache.direct")? {
        cache.direct = on;
    }
    if let Some(on) = props.take_switch("cache.no-flush")? {
        cache.no_flush = on;
    }
    if let Some(on) = props.take_switch("cache.writeback")? {
        cache.write_through = !on;
    }
    Ok(())
}

fn locking(props: &mut Props, key: &'static str) -> Result<bool, ConfigError> {
    let choices = &[("auto", true), ("on", true), ("off", false)];
    Ok(props.take_choice(key, choices)?.unwrap_or(true))
}

fn limits(props: &mut Props) -> Result<Limits, ConfigError> {
    let mut limits = Limits::default();
    let mut take = |short: &'static str, long: &'static str| -> Result<Option<u64>, ConfigError> {
        for key in [short, long] {
            if let Some(text) = props.take(key) {
                let number = parse_size(&text, 1);
                return number.map(Some).ok_or_else(|| {
                    props.bad(key, &text, "a number of units a second, with or without K, M, G")
                });
            }
        }
        Ok(None)
    };
    for (rate, [average, average_long, burst, burst_long]) in [
        (&mut limits.bps, ["bps", "throttling.bps-total", "bps_max", "throttling.bps-total-max"]),
        (
            &mut limits.bps_rd,
            ["bps_rd", "throttling.bps-read", "bps_rd_max", "throttling.bps-read-max"],
        ),
        (
            &mut limits.bps_wr,
            ["bps_wr", "throttling.bps-write", "bps_wr_max", "throttling.bps-write-max"],
        ),
        (
            &mut limits.iops,
            ["iops", "throttling.iops-total", "iops_max", "throttling.iops-total-max"],
        ),
        (
            &mut limits.iops_rd,
            ["iops_rd", "throttling.iops-read", "iops_rd_max", "throttling.iops-read-max"],
        ),
        (
            &mut limits.iops_wr,
            ["iops_wr", "throttling.iops-write", "iops_wr_max", "throttling.iops-write-max"],
        ),
    ] {
        rate.average = take(average, average_long)?.unwrap_or(0);
        rate.burst = take(burst, burst_long)?.unwrap_or(0);
    }
    limits.iops_size = take("iops_size", "throttling.iops-size")?.unwrap_or(0);
    Ok(limits)
}

/// Reads all `--blockdev`: nodes that are files, and nodes that make disks of them.
///
/// # Errors
/// Names the nearest known key or value, or the node that is not there.
pub(super) fn parse_blockdevs(texts: &[String]) -> Result<Vec<DriveSpec>, ConfigError> {
    let mut files: HashMap<String, ImageOptions> = HashMap::new();
    let mut specs = Vec::new();
    for text in texts {
        let plain = match text.trim_start().starts_with('{') {
            true => flatten(text)?,
            false => text.clone(),
        };
        let mut props = Props::with_implied_key("--blockdev", &plain, "driver");
        let driver = props.take("driver").ok_or_else(|| props.missing("driver"))?;
        let name = props.take("node-name").ok_or_else(|| props.missing("node-name"))?;
        let mut options = match driver.as_str() {
            "raw" | "qcow2" => {
                let mut image = match props.take("file") {
                    Some(node) => files.get(&node).cloned().ok_or_else(|| {
                        ConfigError::Conflict(format!(
                            "--blockdev {name}: there is no node '{node}': make it before by --blockdev driver=file,node-name={node},filename=FILE"
                        ))
                    })?,
                    None => file_node(&mut props, true)?,
                };
                let format = FORMATS.iter().find(|(n, _)| *n == driver).map(|(_, f)| *f);
                image.format = format;
                image
            }
            "file" | "host_device" => {
                let mut image = file_node(&mut props, false)?;
                image.format = Some(Format::Raw);
                image
            }
            "null-co" | "null-aio" => {
                let size = props.take("size").map(|text| {
                    parse_size(&text, 1)
                        .filter(|size| size % 512 == 0)
                        .ok_or_else(|| props.bad("size", &text, "a multiple of 512"))
                });
                ImageOptions {
                    null: Some(size.transpose()?.unwrap_or(NULL_SIZE)),
                    ..ImageOptions::new("")
                }
            }
            _ => {
                return Err(props.bad(
                    "driver",
                    &driver,
                    "raw, qcow2, file, host_device or null-co",
                ));
            }
        };
        if let Some(on) = props.take_switch("read-only")? {
            options.readonly = on;
        }
        // Whether it may become read-only by itself: it never does.
        props.take_switch("auto-read-only")?;
        if let Some(on) = props.take_choice("discard", DISCARDS)? {
            options.discard = on;
        }
        cache_keys(&mut props, &mut options.cache)?;
        let detect_zeroes = props.take_choice("detect-zeroes", DETECT)?.unwrap_or(false);
        props.finish()?;
        if matches!(driver.as_str(), "file" | "host_device") {
            files.insert(name.clone(), options.clone());
        }
        let mut drive = DriveOptions::new(name, Some(options));
        drive.node = true;
        drive.detect_zeroes = detect_zeroes;
        specs.push(DriveSpec { interface: Interface::None, options: drive });
    }
    // A file that another node is based on is that one's.
    let based: Vec<PathBuf> = specs
        .iter()
        .filter_map(|spec| spec.options.image.as_ref())
        .filter(|image| image.null.is_none())
        .map(|image| image.file.clone())
        .collect();
    specs.retain(|spec| {
        let file = spec.options.image.as_ref().map(|image| &image.file);
        let shared = based.iter().filter(|path| Some(*path) == file).count() > 1;
        !(shared && files.contains_key(&spec.options.id))
    });
    Ok(specs)
}

/// The keys of a file node, `file.` in front of them if it is part of another.
fn file_node(props: &mut Props, nested: bool) -> Result<ImageOptions, ConfigError> {
    let key =
        |plain: &'static str, nested_key: &'static str| if nested { nested_key } else { plain };
    if nested && let Some(driver) = props.take("file.driver") {
        if driver == "null-co" {
            return Ok(ImageOptions { null: Some(NULL_SIZE), ..ImageOptions::new("") });
        }
        if driver != "file" && driver != "host_device" {
            return Err(props.bad("file.driver", &driver, "file, host_device or null-co"));
        }
    }
    let name = key("filename", "file.filename");
    let file = props.take(name).ok_or_else(|| props.missing(name))?;
    let mut image = ImageOptions::new(file);
    image.aio = props.take_choice(key("aio", "file.aio"), AIOS)?.unwrap_or_default();
    image.locking = locking(props, key("locking", "file.locking"))?;
    if nested {
        if let Some(on) = props.take_switch("file.cache.direct")? {
            image.cache.direct = on;
        }
        if let Some(on) = props.take_switch("file.cache.no-flush")? {
            image.cache.no_flush = on;
        }
    }
    Ok(image)
}

/// A JSON object as `key=value,outer.inner=value`.
fn flatten(text: &str) -> Result<String, ConfigError> {
    fn walk(prefix: &str, value: &Value, out: &mut Vec<String>) {
        match value {
            Value::Object(map) => {
                for (key, value) in map {
                    let name =
                        if prefix.is_empty() { key.clone() } else { format!("{prefix}.{key}") };
                    walk(&name, value, out);
                }
            }
            Value::Bool(on) => out.push(format!("{prefix}={}", if *on { "on" } else { "off" })),
            Value::String(text) => out.push(format!("{prefix}={}", text.replace(',', ",,"))),
            other => out.push(format!("{prefix}={other}")),
        }
    }
    let value: Value = serde_json::from_str(text).map_err(|error| ConfigError::BadValue {
        option: "--blockdev".into(),
        value: text.to_owned(),
        expected: format!("JSON ({error})"),
    })?;
    let mut words = Vec::new();
    walk("", &value, &mut words);
    Ok(words.join(","))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn drive(text: &str) -> Result<DriveSpec, String> {
        DriveSpec::parse(text, |_| 0).map_err(|error| error.to_string())
    }

    #[test]
    fn a_drive_has_qemus_properties() {
        let spec = drive(
            "file=a,,b.img,format=qcow2,if=none,id=d0,readonly=on,cache=none,aio=io_uring,\
             discard=unmap,snapshot=on,werror=stop,rerror=ignore,bps=1M,iops_rd=100,iops_rd_max=200,serial=S1",
        )
        .unwrap();
        let image = spec.options.image.as_ref().unwrap();
        assert_eq!((spec.interface, spec.options.id.as_str()), (Interface::None, "d0"));
        assert_eq!(image.file, PathBuf::from("a,b.img"));
        assert_eq!((image.format, image.aio), (Some(Format::Qcow2), Aio::IoUring));
        assert!(image.readonly && image.cache.direct && image.discard && image.snapshot);
        assert_eq!((spec.options.werror, spec.options.rerror), (OnError::Stop, OnError::Ignore));
        assert_eq!(spec.options.limits.bps.average, 1 << 20);
        assert_eq!(spec.options.limits.iops_rd.burst, 200);
        let plain = drive("disk.img").unwrap();
        assert_eq!((plain.interface, plain.options.id.as_str()), (Interface::Virtio, "virtio0"));
        assert_eq!(plain.options.werror, OnError::Enospc);
        assert!(drive("if=none,id=empty").unwrap().options.image.is_none());
    }

    #[test]
    fn misspelt_drives_are_told_what_was_meant() {
        for (text, expected) in [
            ("file=x,formt=raw", "did you mean 'format'?"),
            ("file=x,format=vmdk", "raw or qcow2"),
            ("file=x,cache=writeback2", "writeback or none"),
            ("file=x,if=ide", "virtio or none"),
            ("file=x,aio=native", "threads or io_uring"),
            ("file=x,bps=fast", "a number of units a second"),
            ("file=x,bps=1,bps_rd=1", "bps limits reads and writes together"),
            ("file=x,serial=123456789012345678901", "up to 20 bytes"),
            ("file=x,media=cdrom", "readonly=on"),
        ] {
            let error = drive(text).unwrap_err();
            assert!(error.contains(expected), "{text}: {error}");
        }
    }

    #[test]
    fn nodes_are_made_in_one_step_or_two_and_from_json() {
        let parse = |texts: &[&str]| {
            parse_blockdevs(&texts.iter().map(|t| (*t).to_owned()).collect::<Vec<_>>())
        };
        let one =
            parse(&["driver=qcow2,node-name=d,file.driver=file,file.filename=x,discard=unmap"]);
        let two = parse(&[
            "driver=file,node-name=f,filename=x",
            "driver=qcow2,node-name=d,file=f,discard=unmap",
        ]);
        let json = parse(&[
            r#"{"driver":"qcow2","node-name":"d","discard":"unmap","file":{"driver":"file","filename":"x"}}"#,
        ]);
        let one = one.unwrap();
        assert_eq!((one.len(), one[0].options.id.as_str()), (1, "d"));
        assert!(one[0].options.image.as_ref().unwrap().discard);
        assert_eq!(two.unwrap(), one);
        assert_eq!(json.unwrap(), one);
        for (text, expected) in [
            ("driver=qcow2,node-name=d,file=nope", "there is no node 'nope'"),
            ("driver=qcow2,file.filename=x", "lacks node-name"),
            ("driver=qcow,node-name=x", "raw, qcow2, file"),
            ("driver=file,node-name=x", "lacks filename"),
            ("{", "JSON"),
        ] {
            let error = parse(&[text]).unwrap_err().to_string();
            assert!(error.contains(expected), "{text}: {error}");
        }
    }
}
