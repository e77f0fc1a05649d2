"""Encodes packed images into latents: python tools/encode_latents.py SHARDS OUT --vae FOLDER [--scale S] ...

On several GPUs: python launchers/torchrun.py --standalone --nproc-per-node=8 tools/encode_latents.py SHARDS OUT ...
Stores, for every image and its mirror image, mean and standard deviation of the posterior as float16. Started again
after it was killed, it goes on. Exit code 0 if OUT is complete, 2 if something cannot be read or written.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from afm_scale.commands.encode_latents import EncodeRequest, encode_command
from afm_scale.commands.ending import tell
from afm_scale.core.errors import RunError


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shards", type=Path, metavar="SHARDS", help="a folder that tools/make_shards.py has packed")
    parser.add_argument("out", type=Path, metavar="OUT")
    parser.add_argument("--vae", required=True, help="a folder that diffusers' AutoencoderKL loads, or a hub name")
    parser.add_argument("--name", help="what training calls the autoencoder (data.vae); by default the folder's name")
    parser.add_argument("--scale", type=float, help="a latent is scale * sample (default: as the VAE says)")
    parser.add_argument("--batch-size", type=int, default=32, help="images encoded at once by each rank")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--workers", type=int, help="processes of each rank that decode (4 with a GPU, else none)")
    try:
        return encode_command(EncodeRequest(**vars(parser.parse_args())))
    except RunError as error:
        return tell(error)


if __name__ == "__main__":
    sys.exit(main())
