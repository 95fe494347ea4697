"""How weights, actions and scores are laid out: what kernels of shared weights read."""

from typing import NamedTuple

from bandit.kernels.compiling import Bools, Cells, Floats, Ints


class Terms(NamedTuple):
    """Blocks of weights, and which of them every action uses.

    Attributes
    ----------
    cells : (t, k)
        Cell of every action in each term.
    offsets, counts : (t,)
        First weight and number of cells of each term.
    crossed : (t,)
        Whether a term's cell holds d weights (crossed with the context) or one.
    parts : (t,)
        Cells with weights of a term with attributes, of which an action takes a mixture; 0 for
        others.
    loads : (t, cells, parts)
        The mixture: coefficient of every part in each cell of a term with attributes.
    """

    cells: Cells
    offsets: Ints
    counts: Ints
    crossed: Bools
    parts: Ints
    loads: Floats


class Planes(NamedTuple):
    """Terms gathered by the factors they depend on, so that few sums are made per action.

    Attributes
    ----------
    homes : (t,)
        Plane of each term, or -1 for one that is the same for every action.
    uses : (t, max(sizes))
        Which of a term's cells every cell of its plane uses.
    cells : (p, k)
        Cell of every action in each plane; at most three planes.
    sizes : (p,)
        Number of cells of each plane.
    grid : (g, s)
        Every action once: a row for each combination of all factors but one, whose levels are
        the columns.
    varies : (p,)
        Whether a plane's cell varies within a row of the grid.
    is_alike : bool
        Whether what varies is the same in every row of the grid.
    """

    homes: Cells
    uses: Cells
    cells: Cells
    sizes: Ints
    grid: Cells
    varies: Bools
    is_alike: bool
