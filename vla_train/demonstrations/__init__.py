"""Demonstrations: collecting them with an expert, and LeRobot's dataset format (v3), written and read.

expert plays -> writer -> folder in LeRobot's format -> dataset -> supervised fine-tuning
"""
