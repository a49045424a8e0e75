use super::*;

#[test]
fn a_mark_is_known_again_and_one_of_another_layout_hash_or_word_is_not() {
    let mark =
        Mark { boot: [1, 2], hash_key: [3, 4], generation: 5, process: 6, format: Format::CURRENT };
    let tag = mark.tag();
    assert_eq!(Mark::of(&tag), Some(mark));
    let later = Mark { generation: 77, ..mark };
    let mut noted = tag;
    noted[GENERATION] = 77;
    assert_eq!(Mark::of(&noted), Some(later), "a generation is noted in a word of its own");
    let mut followed = tag;
    followed[7] = 7;
    assert_eq!(Mark::of(&followed), Some(Mark { process: 7, ..mark }));
    for word in [3, 4, 6] {
        let mut other = tag;
        other[word] ^= 1;
        assert_eq!(Mark::of(&other), None, "word {word}");
    }
    noted[GENERATION] = 1 << 32;
    assert_eq!(Mark::of(&noted), None);
    assert_eq!(Mark::of(&[0; 8]), None);
    // A former version's layout is not ours to judge; one to come is unknown.
    let former = Mark { format: Format::OneMapping, ..mark };
    let mut tag = former.tag();
    tag[6] ^= 1;
    assert_eq!(Mark::of(&tag), Some(former));
    tag[0] = Format::CURRENT.number() + 1;
    assert_eq!(Mark::of(&tag), None);
}
