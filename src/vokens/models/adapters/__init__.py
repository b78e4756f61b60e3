"""Third-party tokenizers as `Codec`: those that transformers ships, and Opus, Codec2 and Lyra v2.

One file per family, each a `Codec`: encode, decode, extract, bench and roundtrip take them by name. Their
dependencies (transformers, a system library, ai-edge-litert) are imported when one is opened. docs/systems/adapters.md.
"""

from vokens.models.adapters.codec2 import Codec2
from vokens.models.adapters.dac import DAC
from vokens.models.adapters.encodec import EnCodec
from vokens.models.adapters.lyra import Lyra
from vokens.models.adapters.mimi import Mimi
from vokens.models.adapters.opus import Opus
from vokens.models.adapters.xcodec import HiggsV2, XCodec
from vokens.models.adapters.xcodec2 import NeuCodec, XCodec2

__all__ = ["DAC", "Codec2", "EnCodec", "HiggsV2", "Lyra", "Mimi", "NeuCodec", "Opus", "XCodec", "XCodec2"]
