//! The lines that a change adds to a file and takes out of it, for people to look at beforehand.

/// The lines of a file that are compared; a longer one is not shown.
const LINES_MAX: usize = 4000;

/// Returns the lines that differ, those taken out with `-` and those added with `+`.
pub(super) fn difference(old: &str, new: &str) -> Vec<String> {
    let (old, new): (Vec<&str>, Vec<&str>) = (old.lines().collect(), new.lines().collect());
    if old.len().max(new.len()) > LINES_MAX {
        return vec!["(the file is too long to be compared)".to_owned()];
    }
    let common = common_lines(&old, &new);
    let width = new.len() + 1;
    let (mut at_old, mut at_new) = (0, 0);
    let mut lines = Vec::new();
    while at_old < old.len() || at_new < new.len() {
        let here = at_old * width + at_new;
        if at_old < old.len() && at_new < new.len() && old[at_old] == new[at_new] {
            (at_old, at_new) = (at_old + 1, at_new + 1);
        } else if at_new < new.len()
            && (at_old == old.len() || common[here + 1] > common[here + width])
        {
            lines.push(format!("+{}", new[at_new]));
            at_new += 1;
        } else {
            lines.push(format!("-{}", old[at_old]));
            at_old += 1;
        }
    }
    lines
}

/// Returns, for each pair of places, how many lines the rests behind them have in common.
fn common_lines(old: &[&str], new: &[&str]) -> Vec<u16> {
    let width = new.len() + 1;
    let mut common = vec![0_u16; (old.len() + 1) * width];
    for at_old in (0..old.len()).rev() {
        for at_new in (0..new.len()).rev() {
            let here = at_old * width + at_new;
            common[here] = if old[at_old] == new[at_new] {
                common[here + width + 1] + 1
            } else {
                common[here + width].max(common[here + 1])
            };
        }
    }
    common
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_that_stay_are_not_shown() {
        assert_eq!(difference("a\nb\nc\n", "a\nx\nc\nd\n"), ["-b", "+x", "+d"]);
        assert_eq!(difference("", "a\n"), ["+a"]);
        assert_eq!(difference("a\nb", "b"), ["-a"]);
        assert!(difference("a\n", "a\n").is_empty());
        assert_eq!(difference(&"a\n".repeat(5000), "").len(), 1);
    }
}
