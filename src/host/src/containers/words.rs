//! Names for containers that nobody named: an adjective and a farm animal.

use rand::seq::IndexedRandom;

const ADJECTIVES: [&str; 64] = [
    "able", "amber", "bold", "brave", "brisk", "broad", "calm", "clever", "cosy", "curly", "deft",
    "eager", "early", "fair", "fleet", "fluffy", "fond", "frosty", "gentle", "glad", "golden",
    "grand", "happy", "hardy", "honest", "humble", "jolly", "keen", "kind", "lively", "lucky",
    "meek", "merry", "mild", "misty", "neat", "nimble", "noble", "placid", "plucky", "polite",
    "proud", "quick", "quiet", "ready", "rosy", "rustic", "sandy", "shy", "silent", "sleek",
    "slow", "smart", "soft", "spotted", "steady", "sturdy", "sunny", "swift", "tidy", "vivid",
    "warm", "wise", "witty",
];

const ANIMALS: [&str; 64] = [
    "alpaca", "bantam", "barbet", "beagle", "bison", "bullock", "buzzard", "calf", "camel",
    "cattle", "chick", "cob", "collie", "colt", "cow", "crow", "dexter", "donkey", "dove", "drake",
    "duck", "ewe", "falcon", "ferret", "filly", "foal", "gander", "goat", "goose", "guernsey",
    "hare", "heifer", "hen", "heron", "hinny", "horse", "jersey", "kid", "lamb", "lark", "llama",
    "longhorn", "magpie", "mare", "merino", "mole", "mule", "newt", "otter", "owl", "ox",
    "oxpecker", "pigeon", "pony", "pullet", "quail", "rabbit", "ram", "robin", "rooster", "sheep",
    "swallow", "turkey", "yak",
];

/// Returns two random words with a hyphen.
pub(super) fn random_name() -> String {
    let mut random = rand::rng();
    let mut pick = |words: &[&'static str]| words.choose(&mut random).copied().unwrap_or("plain");
    format!("{}-{}", pick(&ADJECTIVES), pick(&ANIMALS))
}

#[cfg(test)]
mod tests {
    use super::*;
    use cowshed_format::base::Name;
    use std::collections::HashSet;

    #[test]
    fn every_word_is_used_once_and_makes_a_name() {
        for words in [ADJECTIVES, ANIMALS] {
            assert_eq!(words.iter().collect::<HashSet<_>>().len(), words.len());
            assert!(words.iter().all(|word| Name::new(word).is_ok()));
        }
        assert!(Name::new(&random_name()).is_ok());
    }
}
