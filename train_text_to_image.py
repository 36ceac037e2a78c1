"""`accelerate launch train_text_to_image.py ...`: the flags of the diffusers example, on Dovetail's learner."""

from dovetail.launch import main

if __name__ == "__main__":
    main()
