//! Networks: backends, links, and the ports of the host that lead to the guest.

use crate::args::Args;
use crate::control::Control;
use crate::error::CommandError;
use crate::reply::Reply;
use crate::schema::{Member, Type};
use crate::table::{Arg, Command, Outcome, QmpForm};

pub(crate) const COMMANDS: &[Command] = &[
    Command {
        hmp: Some("hostfwd_add"),
        args: &[Arg::text("netdev"), Arg::text("rule").optional()],
        usage: "[netdev_id] [tcp|udp]:[hostaddr]:hostport-[guestaddr]:guestport",
        help: "lead a port of the host to the guest, on a user network",
        qmp: Some(QmpForm { name: "hostfwd-add", args: RULE, returns: Type::Nothing }),
        run: hmp_hostfwd_add,
    },
    Command {
        hmp: Some("hostfwd_remove"),
        args: &[Arg::text("netdev"), Arg::text("rule").optional()],
        usage: "[netdev_id] [tcp|udp]:[hostaddr]:hostport",
        help: "end what hostfwd_add or hostfwd= began; connections go on",
        qmp: Some(QmpForm { name: "hostfwd-remove", args: RULE, returns: Type::Str }),
        run: hmp_hostfwd_remove,
    },
    Command {
        hmp: Some("info network"),
        args: &[],
        usage: "",
        help: "the network cards, each with the backend it is connected to",
        qmp: Some(QmpForm { name: "x-query-network", args: &[], returns: Type::Str }),
        run: hmp_info_network,
    },
    Command {
        hmp: Some("info usernet"),
        args: &[],
        usage: "",
        help: "the connections and forwards of the user networks",
        qmp: Some(QmpForm { name: "x-query-usernet", args: &[], returns: Type::Str }),
        run: hmp_info_usernet,
    },
    Command {
        hmp: Some("netdev_add"),
        args: &[Arg::rest("type").optional()],
        usage: "[user|tap|socket|stream],id=str[,prop=value][,...]",
        help: "open a network backend, described as for --netdev",
        qmp: Some(QmpForm {
            name: "netdev_add",
            args: &[
                Member::required("type", Type::Str),
                Member::optional("properties", Type::Open),
            ],
            returns: Type::Nothing,
        }),
        run: hmp_netdev_add,
    },
    Command {
        hmp: Some("netdev_del"),
        args: &[Arg::text("id")],
        usage: "id",
        help: "close a network backend; the card that has it loses its link",
        qmp: Some(QmpForm {
            name: "netdev_del",
            args: &[Member::required("id", Type::Str)],
            returns: Type::Nothing,
        }),
        run: hmp_netdev_del,
    },
    Command {
        hmp: Some("set_link"),
        args: &[Arg::text("name"), Arg::text("up")],
        usage: "name on|off",
        help: "plug in or pull the cable of a network card or backend",
        qmp: Some(QmpForm {
            name: "set_link",
            args: &[Member::required("name", Type::Str), Member::required("up", Type::Bool)],
            returns: Type::Nothing,
        }),
        run: hmp_set_link,
    },
];

const RULE: &[Member] =
    &[Member::optional("netdev", Type::Str), Member::required("rule", Type::Str)];

/// The network's name, if it was given, and the rule: in HMP a single word is the rule.
fn rule(args: &Args) -> Result<(Option<&str>, &str), CommandError> {
    match (args.opt_text("netdev"), args.opt_text("rule")) {
        (netdev, Some(rule)) => Ok((netdev, rule)),
        (Some(rule), None) => Ok((None, rule)),
        (None, None) => Err(CommandError::Missing("rule")),
    }
}

fn hmp_hostfwd_add(control: &mut dyn Control, args: &Args) -> Outcome {
    let (netdev, rule) = rule(args)?;
    control.hostfwd_add(netdev, rule).map(|()| Reply::Done {})
}

fn hmp_hostfwd_remove(control: &mut dyn Control, args: &Args) -> Outcome {
    let (netdev, rule) = rule(args)?;
    control.hostfwd_remove(netdev, rule).map(Reply::Text)
}

fn hmp_info_network(control: &mut dyn Control, _: &Args) -> Outcome {
    Ok(Reply::Text(control.network()))
}

fn hmp_info_usernet(control: &mut dyn Control, _: &Args) -> Outcome {
    Ok(Reply::Text(control.usernet()))
}

fn hmp_netdev_add(control: &mut dyn Control, args: &Args) -> Outcome {
    let kind = args.opt_text("type").unwrap_or_default();
    if kind.is_empty() {
        return Err(CommandError::Missing("type"));
    }
    let mut words = vec![kind];
    words.extend(args.list("properties").iter().map(String::as_str));
    control.netdev_add(&words.join(",")).map(|()| Reply::Done {})
}

fn hmp_netdev_del(control: &mut dyn Control, args: &Args) -> Outcome {
    control.netdev_del(args.text("id")?).map(|()| Reply::Done {})
}

fn hmp_set_link(control: &mut dyn Control, args: &Args) -> Outcome {
    let up = match args.opt_text("up") {
        Some("on") => true,
        Some("off") => false,
        Some(_) => return Err(CommandError::BadValue { name: "up", expected: "'on' or 'off'" }),
        None => args.flag("up"),
    };
    control.set_link(args.text("name")?, up).map(|()| Reply::Done {})
}
