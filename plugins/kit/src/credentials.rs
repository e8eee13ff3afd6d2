//! Where a client that connects may show a token, and how two secrets are
//! compared.

use std::hint::black_box;

/// The first value of this parameter in the query of a URL, decoded; none when
/// there is none.
pub fn in_query(path_and_query: &str, parameter: &str) -> Option<String> {
    let (_, query) = path_and_query.split_once('?')?;
    form_urlencoded::parse(query.as_bytes())
        .find(|(key, _)| key == parameter)
        .map(|(_, token)| token.into_owned())
}

/// The token of an `Authorization: Bearer` header; none when there is no such
/// header, or one of another scheme. Headers' names are in lower case.
pub fn in_authorization(headers: &[(String, Vec<u8>)]) -> Option<String> {
    let values = headers.iter().filter(|(name, _)| name == "authorization");
    values.filter_map(|(_, value)| std::str::from_utf8(value).ok()).find_map(|value| {
        let (scheme, token) = value.trim().split_once(' ')?;
        scheme.eq_ignore_ascii_case("bearer").then(|| token.trim().to_owned())
    })
}

/// The first sub-protocol that was requested and begins with `prefix`, without
/// it: a browser can set no other header of its own.
pub fn in_subprotocols(headers: &[(String, Vec<u8>)], prefix: &str) -> Option<String> {
    let lists = headers.iter().filter(|(name, _)| name == "sec-websocket-protocol");
    let lists = lists.filter_map(|(_, list)| std::str::from_utf8(list).ok());
    let mut names = lists.flat_map(|list| list.split(',')).map(str::trim);
    names.find_map(|name| name.strip_prefix(prefix)).map(str::to_owned)
}

/// Whether two secrets are the same. Of two of one length it looks at all bytes,
/// so the time it takes tells nothing of how much of a guess was right.
pub fn equal_in_constant_time(a: &[u8], b: &[u8]) -> bool {
    let pairs = a.iter().zip(b);
    // The black box keeps the compiler from leaving the loop early.
    let difference = pairs.fold(0, |difference, (a, b)| black_box(difference | (a ^ b)));
    a.len() == b.len() && difference == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_found_in_a_url() {
        let check = |path, expected: Option<&str>| {
            assert_eq!(in_query(path, "token").as_deref(), expected, "{path}");
        };
        check("/ws", None);
        check("", None);
        check("/ws?", None);
        check("/ws?token", Some(""));
        check("/ws?token=", Some(""));
        check("/ws?token=s3cret", Some("s3cret"));
        check("/ws?a=b&token=s3cret&c=d", Some("s3cret"));
        check("/ws?token=one&token=two", Some("one"));
        check("/ws?xtoken=a&tokens=b", None);
        check("/ws?to%6ben=a%26b%3D%2B+%C3%A9", Some("a&b=+ é"));
        check("/ws?token=%zz%e9", Some("%zz\u{fffd}"));
        check("/token=s3cret", None);
        assert_eq!(in_query("/ws?token=a&jwt=b", "jwt").as_deref(), Some("b"));
    }

    fn headers(headers: &[(&str, &str)]) -> Vec<(String, Vec<u8>)> {
        let own = |(name, value): &(&str, &str)| (name.to_string(), value.as_bytes().to_vec());
        headers.iter().map(own).collect()
    }

    #[test]
    fn a_token_is_found_in_the_authorization() {
        let check = |value, expected: Option<&str>| {
            let headers = headers(&[("host", "Bearer no"), ("authorization", value)]);
            assert_eq!(in_authorization(&headers).as_deref(), expected, "{value}");
        };
        check("Bearer abc", Some("abc"));
        check("bearer  abc ", Some("abc"));
        check("Bearer", None);
        check("Basic abc", None);
        check("", None);
        assert_eq!(in_authorization(&[]), None);
    }

    #[test]
    fn a_token_is_found_among_the_subprotocols() {
        let check = |list, expected: Option<&str>| {
            let headers = headers(&[("sec-websocket-protocol", list)]);
            assert_eq!(in_subprotocols(&headers, "bearer.").as_deref(), expected, "{list}");
        };
        check("switchyard.v1.json, bearer.a.b.c", Some("a.b.c"));
        check("bearer.one,bearer.two", Some("one"));
        check("bearer.", Some(""));
        check("bearer", None);
        check("", None);
    }

    #[test]
    fn secrets_are_the_same_or_not() {
        let check = |a: &str, b: &str, expected| {
            assert_eq!(equal_in_constant_time(a.as_bytes(), b.as_bytes()), expected, "{a} {b}");
        };
        check("", "", true);
        check("s3cret", "s3cret", true);
        check("s3cret", "s3creT", false);
        check("s3cret", "s3cre", false);
    }
}
