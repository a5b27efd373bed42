from ._layouts import LayoutName as LayoutName
from ._load import adapt as adapt, load as load, load_initial as load_initial, load_into as load_into
from ._open import Source as Source
from ._preprocessing import load_preprocessing as load_preprocessing
from ._save import save as save, state_dict as state_dict
