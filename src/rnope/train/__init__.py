"""Training in stages: one loop, whatever the stage; what a stage changes is data."""
