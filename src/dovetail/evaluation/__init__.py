"""Evaluation: is the tuned model better than its base, and can the judge tell?"""
