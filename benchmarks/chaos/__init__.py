"""Faults in every stage of a job, and the proof that no accepted job is lost or done twice."""
