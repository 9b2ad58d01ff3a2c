"""`cads_doctor`: checks of installation, data, encoder and plans."""
