"""What a run says, for people: a table in the terminal, figures, one offline HTML page, and a local view of it.

Made from records alone, without torch and without the model.
"""

from leadline.report.figures import plot
from leadline.report.page import write_page
from leadline.report.rendering import save_png, save_svg
from leadline.report.table import print_result

__all__ = ["plot", "print_result", "save_png", "save_svg", "write_page"]
