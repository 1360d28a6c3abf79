"""What a study answers -> its report: sections, figures, files."""
