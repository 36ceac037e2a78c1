"""`accelerate launch train_text_to_image.py ...`: the flags of the diffusers example, on Dovetail's learner."""

from dovetail.cli import train_text_to_image

if __name__ == "__main__":
    train_text_to_image()
