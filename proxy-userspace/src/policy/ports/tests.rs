use serde::de::IntoDeserializer;
use serde::de::value::{Error, SeqDeserializer, StrDeserializer};

use super::*;

fn parse(text: &str) -> Result<PortRange, String> {
    text.parse().map_err(|error: PortError| error.to_string())
}

#[test]
fn reads_a_port_or_a_range() {
    for (text, inside, outside) in [
        ("443", vec![443], vec![0, 442, 444, 65535]),
        ("1", vec![1], vec![0, 2]),
        ("65535", vec![65535], vec![65534]),
        ("8000-8100", vec![8000, 8050, 8100], vec![7999, 8101]),
        ("1-65535", vec![1, 443, 65535], vec![0]),
        ("80-80", vec![80], vec![79, 81]),
    ] {
        let range = parse(text).unwrap();
        assert!(inside.iter().all(|port| range.contains(*port)), "{text}");
        assert!(!outside.iter().any(|port| range.contains(*port)), "{text}");
        assert_eq!(parse(&range.to_string()), Ok(range), "{text}");
    }
}

#[test]
fn refuses_what_is_no_port_and_says_what_to_write() {
    for (text, culprit) in [
        ("", ""),
        ("0", "0"),
        ("0-80", "0"),
        ("65536", "65536"),
        ("+443", "+443"),
        ("0443", "0443"),
        (" 443", " 443"),
        ("https", "https"),
        ("-", ""),
        ("-443", ""),
        ("80-", ""),
        ("80-90-100", "90-100"),
        ("80\u{2013}90", "80\u{2013}90"),
    ] {
        let expected = format!(
            "'{culprit}' is not a port; write a number from 1 to 65535, or a range such as 8000-8100"
        );
        assert_eq!(parse(text), Err(expected), "{text:?}");
    }
    let reversed = "the range 90-80 is empty; write the lower port first";
    assert_eq!(parse("90-80"), Err(reversed.to_owned()));
}

#[test]
fn a_set_contains_the_ports_of_all_its_ranges() {
    let set: PortSet = ["443", "8000-8100"]
        .map(|text| parse(text).unwrap())
        .into_iter()
        .collect();
    for (port, expected) in [
        (443, true),
        (8042, true),
        (444, false),
        (22, false),
        (0, false),
    ] {
        assert_eq!(set.contains(port), expected, "{port}");
    }
    assert_eq!(set.to_string(), "443,8000-8100");
    assert_eq!(PortSet::default().to_string(), "443");
}

#[test]
fn a_file_may_have_integers_and_strings() {
    let text = StrDeserializer::<Error>::new;
    assert_eq!(
        PortRange::deserialize(text("8000-8100")),
        Ok(parse("8000-8100").unwrap())
    );
    assert_eq!(
        PortRange::deserialize(text("443")),
        Ok(parse("443").unwrap())
    );
    let error = PortRange::deserialize(text("90-80"))
        .unwrap_err()
        .to_string();
    assert!(error.contains("lower port first"), "{error}");

    let signed =
        |port: i64| PortRange::deserialize(IntoDeserializer::<Error>::into_deserializer(port));
    let unsigned =
        |port: u64| PortRange::deserialize(IntoDeserializer::<Error>::into_deserializer(port));
    assert_eq!(signed(443), Ok(parse("443").unwrap()));
    assert_eq!(unsigned(443), Ok(parse("443").unwrap()));
    for error in [
        signed(0),
        signed(-1),
        signed(65536),
        unsigned(0),
        unsigned(u64::MAX),
    ] {
        let error = error.unwrap_err().to_string();
        assert!(error.contains("a port from 1 to 65535"), "{error}");
    }

    let list = SeqDeserializer::<_, Error>::new([443_i64, 8443].into_iter());
    assert_eq!(PortSet::deserialize(list).unwrap().to_string(), "443,8443");
}
