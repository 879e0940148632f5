"""Published flags with a value unlike their default's, and the published names of the clone losses, spelled out."""

from dataclasses import replace

from lrc.verbs.published_train_flags import TERM_OF_LOSS
from tests.verbs.test_published_train import recipe_of


def test_flags_whose_published_value_is_the_default_reach_the_recipe() -> None:
    given = (
        "--learning-rate 3e-4 --gradient_accumulation_steps 2 --max_grad_norm 0.5 --adam_beta2 0.95 "
        "--check_data_cls_loss 1 --log_steps 7 --save_steps 9"
    )
    plain, found = recipe_of(), recipe_of(*given.split())
    expected = replace(
        plain.train,
        learning_rate=3e-4,
        gradient_accumulation_steps=2,
        max_grad_norm=0.5,
        beta2=0.95,
        log_data_classes=True,
        log_steps=7,
        save_steps=9,
    )
    assert found.train == expected
    assert found == replace(plain, train=expected)


def test_each_published_loss_is_the_clone_term_of_its_name() -> None:
    assert TERM_OF_LOSS == {
        "attn-q-sim-loss": "attn-q",
        "attn-k-sim-loss": "attn-k",
        "attn-v-sim-loss": "attn-v",
        "attn-in-sim-loss": "attn-in",
        "attn-out-sim-loss": "attn-out",
        "mlp-gate-loss": "mlp-gate",
        "mlp-up-loss": "mlp-up",
        "mlp-in-loss": "mlp-in",
        "mlp-out-loss": "mlp-out",
    }
