//! The user of a container, resolved with the image's own `/etc/passwd` and `/etc/group`.
//!
//! As in Docker, a number is always an ID, even if it is also the name of a user, and groups that list the user as a member are
//! added only if the image names no group.

/// Errors from resolving a user.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum UserError {
    /// The name is not in the file.
    #[error("{kind} {name:?} is not in the image's {file}")]
    Unknown {
        /// `user` or `group`.
        kind: &'static str,
        /// The name.
        name: String,
        /// The file.
        file: &'static str,
    },
    /// The number is not a valid ID.
    #[error("{kind} {number} is out of range")]
    Range {
        /// `user` or `group`.
        kind: &'static str,
        /// The number.
        number: String,
    },
}

/// User and groups of a container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct User {
    /// User ID.
    pub uid: u32,
    /// Group ID.
    pub gid: u32,
    /// All group IDs, including `gid`. `gid` must be included, because group permissions that deny access apply only to members.
    pub groups: Vec<u32>,
    /// Home directory, if the image's `/etc/passwd` has one.
    pub home: Option<String>,
}

struct Account<'a> {
    name: &'a [u8],
    uid: u32,
    gid: u32,
    home: &'a [u8],
}

struct Group<'a> {
    name: &'a [u8],
    gid: u32,
    members: &'a [u8],
}

impl User {
    /// Resolves `user` or `user:group`, each a name or a number. An empty text means user 0.
    ///
    /// Malformed lines of the files are ignored.
    pub fn find(text: &str, passwd: &[u8], group: &[u8]) -> Result<Self, UserError> {
        let (user, group_text) = text.split_once(':').unwrap_or((text, ""));
        let number = number("user", if user.is_empty() { "0" } else { user })?;
        let account = accounts(passwd).find(|account| match number {
            Some(uid) => account.uid == uid,
            None => account.name == user.as_bytes(),
        });
        let (uid, gid) = match (&account, number) {
            (Some(account), _) => (account.uid, account.gid),
            (None, Some(uid)) => (uid, 0),
            (None, None) => return Err(unknown("user", user, "/etc/passwd")),
        };
        let gid = if group_text.is_empty() { gid } else { find_group(group_text, group)? };
        let mut ids = vec![gid];
        if let Some(account) = account.as_ref().filter(|_| group_text.is_empty()) {
            let is_member =
                |group: &Group<'_>| group.members.split(|&byte| byte == b',').any(|name| name == account.name);
            ids.extend(groups(group).filter(is_member).map(|group| group.gid).filter(|&id| id != gid));
        }
        let home = account.and_then(|account| std::str::from_utf8(account.home).ok().map(str::to_owned));
        Ok(Self { uid, gid, groups: ids, home: home.filter(|home| home.starts_with('/') && !home.contains('\0')) })
    }
}

fn find_group(text: &str, group: &[u8]) -> Result<u32, UserError> {
    match number("group", text)? {
        Some(gid) => Ok(gid),
        None => groups(group)
            .find(|group| group.name == text.as_bytes())
            .map(|group| group.gid)
            .ok_or_else(|| unknown("group", text, "/etc/group")),
    }
}

fn unknown(kind: &'static str, name: &str, file: &'static str) -> UserError {
    UserError::Unknown { kind, name: name.to_owned(), file }
}

/// Parses an ID; `None` if the text is not a number.
fn number(kind: &'static str, text: &str) -> Result<Option<u32>, UserError> {
    if !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return Ok(None);
    }
    id(text.as_bytes()).map(Some).ok_or_else(|| UserError::Range { kind, number: text.to_owned() })
}

/// Parses an ID. The highest number is refused, because `chown` and similar system calls interpret it as "do not change".
fn id(text: &[u8]) -> Option<u32> {
    let text = std::str::from_utf8(text).ok().filter(|text| text.bytes().all(|byte| byte.is_ascii_digit()))?;
    text.parse().ok().filter(|&id| id != u32::MAX)
}

/// Parses lines of the form `name:password:uid:gid:remarks:home:shell`.
fn accounts(passwd: &[u8]) -> impl Iterator<Item = Account<'_>> {
    lines(passwd).filter_map(|line| {
        let mut fields = line.split(|&byte| byte == b':');
        let (name, _, uid, gid) = (fields.next()?, fields.next()?, fields.next()?, fields.next()?);
        let home = fields.nth(1).unwrap_or_default();
        Some(Account { name, uid: id(uid)?, gid: id(gid)?, home })
    })
}

/// Parses lines of the form `name:password:gid:members`.
fn groups(group: &[u8]) -> impl Iterator<Item = Group<'_>> {
    lines(group).filter_map(|line| {
        let mut fields = line.split(|&byte| byte == b':');
        let (name, _, gid) = (fields.next()?, fields.next()?, fields.next()?);
        Some(Group { name, gid: id(gid)?, members: fields.next().unwrap_or_default() })
    })
}

fn lines(file: &[u8]) -> impl Iterator<Item = &[u8]> {
    file.split(|&byte| byte == b'\n').map(<[u8]>::trim_ascii).filter(|line| !line.is_empty() && line[0] != b'#')
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &[u8] = b"root:x:0:0:root:/root:/bin/sh\n# bob:x:1:1::/:\nbroken:x:none:0::/:\nshort\n\
        bob:x:1000:100:Bob \xff:/home/bob:/bin/sh\n1000:x:5:5::/odd:\nsecond:x:1000:7::/second:\nbare:x:8:9\n";
    const GROUP: &[u8] = b"root:x:0:\nusers:x:100:bob\nwheel:x:10:alice,bob\nbobby:x:11:bobby\nbroken:x:-1:bob\n\
        wheel:x:12:bob\r\nbare:x:13";

    fn find(text: &str) -> (u32, u32, Vec<u32>, Option<String>) {
        let User { uid, gid, groups, home } = User::find(text, PASSWD, GROUP).unwrap();
        (uid, gid, groups, home)
    }

    fn home(path: &str) -> Option<String> {
        Some(path.to_owned())
    }

    #[test]
    fn names_and_numbers_resolve_to_the_same_account_and_its_groups() {
        let bob = (1000, 100, vec![100, 10, 12], home("/home/bob"));
        assert_eq!(find("bob"), bob);
        assert_eq!(find("1000"), bob, "a number is an id, also where a user is called so");
        assert_eq!(find("bob:"), bob);
        assert_eq!(find(""), (0, 0, vec![0], home("/root")));
        assert_eq!(find("bare"), (8, 9, vec![9], None));
    }

    #[test]
    fn named_group_is_the_only_group() {
        assert_eq!(find("bob:wheel"), (1000, 10, vec![10], home("/home/bob")));
        assert_eq!(find("1000:4242"), (1000, 4242, vec![4242], home("/home/bob")));
        assert_eq!(find("bob:10"), (1000, 10, vec![10], home("/home/bob")));
        assert_eq!(find(":wheel"), (0, 10, vec![10], home("/root")));
    }

    #[test]
    fn number_without_an_account_is_used_as_id() {
        assert_eq!(find("4242"), (4242, 0, vec![0], None));
        assert_eq!(find("4294967294:7"), (4_294_967_294, 7, vec![7], None));
        let nobody = User::find("7:8", b"", b"").unwrap();
        assert_eq!((nobody.uid, nobody.gid, nobody.home), (7, 8, None));
    }

    #[test]
    fn error_names_the_unknown_user_or_group() {
        let error = |text: &str| User::find(text, PASSWD, GROUP).unwrap_err().to_string();
        assert_eq!(error("alice"), "user \"alice\" is not in the image's /etc/passwd");
        assert_eq!(error("bob:staff"), "group \"staff\" is not in the image's /etc/group");
        assert_eq!(error("broken"), "user \"broken\" is not in the image's /etc/passwd");
        assert_eq!(error("a\nb"), "user \"a\\nb\" is not in the image's /etc/passwd");
        assert_eq!(error("-1"), "user \"-1\" is not in the image's /etc/passwd");
        assert_eq!(error("4294967295"), "user 4294967295 is out of range");
        assert_eq!(error("0:99999999999"), "group 99999999999 is out of range");
    }
}
