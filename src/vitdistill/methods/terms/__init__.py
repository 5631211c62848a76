"""What a student learns from a teacher's pass: one term a file."""
