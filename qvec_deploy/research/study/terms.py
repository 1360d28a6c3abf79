"""What the words on a study's page mean, for who reads about quantization vectors for the first time."""

from __future__ import annotations

from qvec_deploy.research.study.study_page import Section

QUESTION = (
    "A donor's quantization vector is what quantization-aware training (QAT) changed in its weights. Another task's "
    "model, the receiver, is about to be rounded to few bits without any training (PTQ): does it keep more accuracy if "
    "λ times the vector is added to it before?"
)
TERMS = (
    (
        "Donor, receiver",
        "Two tasks, fine-tuned from one pretrained base. The donor brings the vector; the receiver's float fine-tune "
        "is what gets rounded.",
    ),
    ("Vector", "The donor's weights after QAT less its weights after fine-tuning in float."),
    (
        "λ",
        "How much of the vector is added: receiver + λ × vector, then rounding. 0 adds nothing, 1 all of it; a "
        "negative one goes the other way.",
    ),
    (
        "Plain PTQ",
        "The receiver's weights rounded to the setting's grid, without images and without a vector. The scale fits the "
        "largest weight (absmax), a part of it (clip), or has the least squared error (MSE clipping); on a grid of MSE "
        "clipping, plain PTQ is MSE clipping.",
    ),
    (
        "GPTQ, AWQ",
        "Methods without a vector that look at images while they round: unlabelled ones of the receiver, generated "
        "ones, or second moments that the donors brought.",
    ),
    (
        "Label-free, labelled",
        "How λ, or a donor, is chosen for a receiver, on images of it that are not test images. Label-free: the least "
        "KL divergence of the rounded model's answers from the float receiver's. Labelled: the most right answers. "
        "Hindsight: the most right answers on the test images themselves.",
    ),
    (
        "Mean, mix",
        "The vectors of all donors together: with equal weights, or with the weights that bring the rounded receiver "
        "nearest to the float one on its unlabelled images.",
    ),
    (
        "Control",
        "Something of the vector's norm in its place: a random vector, its rows shuffled, the donor's task vector "
        "(float fine-tune less base), or what GPTQ moves in the donor. A vector that is no better than these has the "
        "right size and nothing more.",
    ),
    (
        "Share of QAT gap",
        "The gain over plain PTQ as a share of what the receiver's own QAT gains: 100 % is as good as training. Sums "
        "over receivers, one divided by the other.",
    ),
    (
        "Intervals, ±",
        "Other receivers, other seeds of the fine-tunes, other test images: each could have brought other numbers, and "
        "each interval or ± says which of them it is about. Donors are those of the study, and in none of them.",
    ),
    (
        "p, Holm",
        "How often chance alone brings such a difference or a larger one. Who asks many questions finds small p by "
        "chance; Holm's correction makes up for that within a family of questions. Better and worse are said below "
        "0.05 after it.",
    ),
)


def terms() -> Section:
    """The words, explained."""
    return Section("terms", "Terms", facts=TERMS)
