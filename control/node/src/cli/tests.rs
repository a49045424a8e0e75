use clap::CommandFactory;

use super::*;

fn parse(line: &str) -> Result<Cli, clap::Error> {
    Cli::try_parse_from(line.split_whitespace())
}

#[test]
fn the_command_line_is_well_formed() {
    Cli::command().debug_assert();
}

#[test]
fn every_command_has_a_word_of_help() {
    fn look(command: &clap::Command) {
        for sub in command.get_subcommands() {
            assert!(sub.get_about().is_some(), "{} has no help", sub.get_name());
            for argument in sub.get_arguments() {
                assert!(
                    argument.get_help().is_some(),
                    "{} of {}",
                    argument.get_id(),
                    sub.get_name()
                );
            }
            look(sub);
        }
    }
    look(&Cli::command());
}

#[test]
fn the_examples_of_the_issue_are_understood() {
    for line in [
        "xskiff run --config /etc/xskiff.yaml --manifests /etc/manifests",
        "xskiff run --config /etc/xskiff.yaml --api-server https://10.0.0.1:6443 --api-server https://[fd00::1]:6443",
        "xskiff run --config /etc/xskiff.yaml --kubeconfig /etc/kubernetes/kubeconfig",
        "xskiff status --json",
        "xskiff endpoint add a/b --interface v0 --address 10.0.0.1 --address fd00::1",
        "xskiff endpoint remove a/b",
        "xskiff endpoint list",
        "xskiff service list",
        "xskiff ct list --proto tcp --port 80 --limit 5",
        "xskiff ct count",
        "xskiff ct flush --address 10.0.0.1",
        "xskiff policy explain --from a/b --to world --port 443 --proto tcp",
        "xskiff drops",
        "xskiff flows --follow --verdict dropped",
        "xskiff capture -w out.pcapng --reason spoofed --direction received",
        "xskiff trace --port v0 0102",
        "xskiff config check f",
        "xskiff config print",
        "xskiff config diff f",
        "xskiff completions bash",
        "xskiff man",
        "xskiff --socket /tmp/x status",
    ] {
        if let Err(error) = parse(line) {
            panic!("{line}: {error}");
        }
    }
}

#[test]
fn nonsense_is_refused() {
    for line in [
        "xskiff",
        "xskiff frobnicate",
        "xskiff ct list --limit 0",
        "xskiff ct list --port 70000",
        "xskiff endpoint add a/b --interface v0",
        "xskiff endpoint add a/b --interface v0 --address ten",
    ] {
        assert!(parse(line).is_err(), "{line}");
    }
}

#[test]
fn a_policy_explanation_lists_every_rule_and_marks_the_one_that_decides() {
    use control::admin::{ExaminedRule, ExplainedStep, PolicyExplanation, Reply};
    let rule = |index, peer_matches, decides| ExaminedRule {
        policy: "shop/web".into(),
        index: Some(index),
        audited: false,
        peer_matches,
        peer: "pods app=web of namespace shop".into(),
        protocol_matches: true,
        protocol: "tcp".into(),
        port_matches: true,
        port: "tcp 80".into(),
        decides,
    };
    let explanation = PolicyExplanation {
        allowed: true,
        summary: "a/b may speak to shop/web on tcp/80".into(),
        from: String::new(),
        to: String::new(),
        steps: vec![ExplainedStep {
            direction: "ingress".into(),
            subject: "shop/web".into(),
            allowed: true,
            rule: "NetworkPolicy shop/web, spec.ingress[1]".into(),
            elsewhere: None,
            would_allow: None,
            examined: vec![rule(0, false, false), rule(1, true, true)],
            examined_left_out: 0,
        }],
        source_nat: Some("seen there as 192.0.2.40, by nat.snat[0]".into()),
    };
    assert_eq!(
        show::reply(&Reply::Policy(explanation)),
        "ALLOWED: a/b may speak to shop/web on tcp/80\n\n\
         ingress of shop/web: allowed by NetworkPolicy shop/web, spec.ingress[1]\n    \
         POLICY    RULE             FROM                                 PROTOCOL  PORT\n    \
         shop/web  spec.ingress[0]  no: pods app=web of namespace shop   yes: tcp  yes: tcp 80\n\
         =>  shop/web  spec.ingress[1]  yes: pods app=web of namespace shop  yes: tcp  yes: tcp 80\n\n\
         seen there as 192.0.2.40, by nat.snat[0]\n"
    );
}

#[test]
fn a_filter_is_told_by_options_or_by_words() {
    let filter = |words: &[&str]| {
        let cli = Cli::try_parse_from([&["xskiff", "ct", "list"], words].concat()).unwrap();
        match cli.command {
            Command::Ct(CtCommand::List { filter, .. }) => FlowFilter::from(filter),
            other => panic!("{other:?}"),
        }
    };
    let by_options = filter(&["--port", "80", "--proto", "tcp", "--service", "shop/web"]);
    let words = ["--filter", "port=80", "--filter", "proto=tcp", "--filter", "service=shop/web"];
    assert_eq!(filter(&words), by_options);
    for wrong in ["port=many", "colour=red", "port"] {
        let words = ["xskiff", "ct", "delete", "--filter", wrong];
        assert!(Cli::try_parse_from(words).is_err(), "{wrong}");
    }
}
