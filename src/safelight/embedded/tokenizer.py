"""The embedded model's tokenizer: byte-level BPE trained on captions, Chinese split by character."""
from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

LENGTH = 48
PAD, BEGIN, UNKNOWN, END = "<pad>", "<begin>", "<unknown>", "<end>"


def train(texts: Iterable[str], folder: Path, *, size: int = 2048) -> None:
    """Train on `texts` and save as a transformers PreTrainedTokenizerFast; ids: pad 0, begin 1, unknown 2, end 3."""
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    t = Tokenizer(models.BPE(unk_token=UNKNOWN))
    t.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase(), normalizers.Replace(Regex(r"\s+"), " ")])
    t.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(r"[\u3400-\u9fff]"), "isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=True)])
    t.decoder = decoders.ByteLevel()
    t.train_from_iterator(texts, trainers.BpeTrainer(vocab_size=size, special_tokens=[PAD, BEGIN, UNKNOWN, END],
                                                     initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False))
    t.post_processor = processors.TemplateProcessing(single=f"{BEGIN} $A {END}", special_tokens=[(BEGIN, 1), (END, 3)])
    PreTrainedTokenizerFast(tokenizer_object=t, pad_token=PAD, bos_token=BEGIN, eos_token=END, unk_token=UNKNOWN,
                            model_max_length=LENGTH, clean_up_tokenization_spaces=False).save_pretrained(folder)
