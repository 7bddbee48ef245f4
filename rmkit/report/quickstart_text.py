"""What the quickstart's pages say about results. docs/quickstart.md repeats the caveats word for word (tested)."""

from dataclasses import dataclass


@dataclass(frozen=True)
class PageText:
    """The words of a page; `caveats` are title -> text."""

    title: str
    lead: str
    caveats: dict[str, str]


TITLE = "rmkit quickstart: reward models under a token-level shift"

LEAD = (
    "Three types of reward model are trained from the same small language model on the same 80 pairs. In every pair "
    "the chosen response agrees with a statement and the rejected one disagrees. Do the reward models still prefer "
    "agreement when it is phrased differently? This is the controlled experiment of Section 5.1 of “Why is Your "
    "Language Model a Poor Implicit Reward Model?”, on generated data and a language model pretrained on this machine. "
    "It shows that the toolkit works and what the experiment looks like. It is not evidence about the language models "
    "of the paper."
)

CAVEATS = {
    "The result depends on a short training run": (
        "In the paper, EX-RMs and EX-GRMs rank paraphrases correctly and IM-RMs almost always rank them wrong. The "
        "recipes here take 9 small steps (3 epochs at learning rate 1e-4), and the near-zero accuracy of the IM-RM "
        "holds only for such a short run: with more training it drifts. In trials with four bases and two seeds it was "
        "0.00 after 3 epochs; after 6 epochs it was 0.00 on two bases, 0.40 to 0.51 on one and 0.96 to 0.98 on one. "
        "Read the whole curve, not only its end."
    ),
    "Which tokens mislead the IM-RM": (
        "An obvious suspect is token overlap in the paper's lists of responses: the paraphrased chosen response begins "
        "with “My response would be”, and half of the rejected training responses with “My judgement:”. The quickstart "
        "therefore adds two controls that the paper does not have. With the prefixes of the paraphrases swapped, "
        "IM-RMs scored 0.00 to 1.00 in the trials, depending on the base and on the responses drawn for the training "
        "pairs; with the same prefix on both sides they scored 0.00 to 0.16. So sometimes the prefixes decide and "
        "sometimes the answers. EX-RMs scored 1.00 on every set; no IM-RM did."
    ),
    "Before training": (
        "Accuracies at epoch 0 are arbitrary. An untrained IM-RM equals its own reference, so all pairs tie (0.50). An "
        "EX-RM has a random head: agreeing and disagreeing responses are so far apart in the hidden states of this "
        "base that it may rank nearly all pairs right, or wrong, by chance. An EX-GRM follows the base's habits with "
        "Yes and No."
    ),
    "What the base knows": (
        "It is pretrained on a generated language of about 200 words, in which replies are acted upon. The corpus "
        "includes the EX-GRM's verification format, applied to facts, but on new facts the base's Yes or No stays at "
        "chance; the EX-GRM reaches 1.00 from the pairs alone. The statements and the twelve responses of the "
        "experiment are not in the corpus; some replies of the two control sets may be."
    ),
    "What was chosen after seeing results": (
        "The prefixes of replies in the corpus were chosen after seeing results of IM-RMs: this is the third version. "
        "With a version that had only the paper's two prefixes beginning with “My”, IM-RMs scored 0.01 to 0.28 on "
        "paraphrases. With the current one they scored 0.00 in all eight trials; with another draw of the training "
        "responses they scored 0.00 in six of eight, and 0.13 and 0.21 in the two of one base. EX-RMs and EX-GRMs "
        "scored 1.00 in all."
    ),
}
"""Title -> text. The trials behind the numbers are listed in docs/quickstart.md."""

TINY = PageText(TITLE, LEAD, CAVEATS)

SMOLLM2 = PageText(
    title="rmkit quickstart on SmolLM2: reward models under a token-level shift",
    lead=(
        "Three types of reward model are trained from SmolLM2-135M-Instruct on the same 80 pairs, with all "
        "parameters. In every pair the chosen response agrees with a statement and the rejected one disagrees. Do the "
        "reward models still prefer agreement when it is phrased differently? This is the controlled experiment of "
        "Section 5.1 of “Why is Your Language Model a Poor Implicit Reward Model?” on a real pretrained language "
        "model. It shows what happens on one small model, with few seeds and one learning rate. It is not a "
        "reproduction: the paper's language models are 7 to 11 times as large in this experiment, and its conclusions "
        "rest on more runs."
    ),
    caveats={
        "One small, quantized model": (
            "SmolLM2-135M-Instruct has 135 million parameters; the smallest language model of the paper's experiment "
            "has a billion. Its weights come from a GGUF file in 4 bits (Q4_1), dequantized to float32: training "
            "starts from the rounded weights, and so does the reference of the IM-RM. Whatever this page shows may be "
            "a property of this model."
        ),
        "A shorter run than the paper's": (
            "The paper takes 50 epochs of 3 steps at learning rate 1e-6. To fit an hour on a CPU, the runs here take "
            "10 epochs at 5e-6: the same product of steps and learning rate, fixed before any result was seen, and "
            "not tuned. Five times larger steps are not the same training. Read the whole curve, and judge a type on "
            "the paraphrases only where it ranks the original responses correctly."
        ),
        "How much the numbers vary": (
            "With one seed there is no range over seeds, and the responses of the training pairs are drawn once for "
            "all seeds. The test sets have 40 prompts; their pairs repeat these prompts with the same few responses, "
            "so they are far from independent. More seeds (--seeds) vary the order of the pairs and the head of the "
            "EX-RM, nothing else."
        ),
        "Whose statements": (
            "With Persona's statements the prompts and all original and paraphrased responses are the paper's; the "
            "draws of prompts and responses follow the released code. Where Persona cannot be reached, generated "
            "statements take its place; the table at the top names the ones that were used. The two controls, swapped "
            "prefixes and the same prefix, are not in the paper."
        ),
        "Chance before training": (
            "Accuracies at epoch 0 are arbitrary. An untrained IM-RM equals its own reference, so all pairs tie "
            "(0.50). An EX-RM has a random head. An EX-GRM follows the language model's habits with Yes and No, which "
            "a model of this size does not reliably tie to the response that it verifies."
        ),
    },
)
